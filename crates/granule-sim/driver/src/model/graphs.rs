//! Graphs: what a capture made, and launches of it.

use super::call::Call;
use super::capture::Node;
use super::clock::{Clock, Lane};
use super::issue::Work;
use super::queue::Action;
use super::{Caller, Result, Simulation};
use crate::code::Code;
use std::collections::BTreeSet;

/// A graph, and a handle for each of its nodes.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) made: Call,
    nodes: Vec<Node>,
    handles: Vec<u64>,
}

/// A graph that can be launched.
#[derive(Debug)]
pub(crate) struct Executable {
    pub(crate) made: Call,
    nodes: Vec<Node>,
    /// The lane of each node: chains of nodes share one.
    lanes: Vec<Lane>,
    /// The end of its last launch: a graph does not run beside itself.
    last: Option<(u64, Clock)>,
}

/// For each node a chain, so that nodes of one chain wait for each other in order: the greedy cover of the graph.
fn chains(nodes: &[Node]) -> Vec<usize> {
    let mut last_of_chain: Vec<usize> = Vec::new();
    nodes
        .iter()
        .enumerate()
        .map(|(n, node)| {
            let chain = last_of_chain.iter().position(|last| node.after.contains(last));
            match chain {
                Some(chain) => {
                    last_of_chain[chain] = n;
                    chain
                }
                None => {
                    last_of_chain.push(n);
                    last_of_chain.len() - 1
                }
            }
        })
        .collect()
}

impl Simulation {
    /// Ends a capture that the stream began.
    pub(crate) fn finish_capture(&mut self, caller: &Caller, stream: u64) -> Result<u64> {
        let nodes = self.end_capture(caller, stream)?;
        let handles = nodes.iter().map(|_| self.new_handle()).collect();
        let handle = self.new_handle();
        self.graphs.insert(handle, Graph { made: caller.call, nodes, handles });
        Ok(handle)
    }

    pub(crate) fn destroy_graph(&mut self, caller: &Caller, graph: u64) -> Result<()> {
        if self.graphs.remove(&graph).is_none() {
            return self.bad_handle(caller, "graph", graph);
        }
        Ok(())
    }

    pub(crate) fn graph_nodes(&mut self, caller: &Caller, graph: u64) -> Result<&[u64]> {
        if !self.graphs.contains_key(&graph) {
            return self.bad_handle(caller, "graph", graph);
        }
        self.graphs.get(&graph).map(|g| &g.handles[..]).ok_or(Code::INVALID_HANDLE)
    }

    /// `CUgraphNodeType` of a node.
    pub(crate) fn node_type(&mut self, caller: &Caller, node: u64) -> Result<i32> {
        let found = self.graphs.values().find_map(|g| {
            let place = g.handles.iter().position(|&h| h == node)?;
            Some(&g.nodes[place].action)
        });
        match found {
            Some(Action::Launch(_) | Action::Gemm(_)) => Ok(0),
            Some(Action::Copy { .. }) => Ok(1),
            Some(Action::Fill { .. }) => Ok(2),
            Some(Action::Call(_)) => Ok(3),
            Some(Action::Mark | Action::Free { .. } | Action::Send(_) | Action::Receive(_)) => Ok(5),
            None => self.bad_handle(caller, "node of a graph", node),
        }
    }

    pub(crate) fn instantiate(&mut self, caller: &Caller, graph: u64) -> Result<u64> {
        let Some(found) = self.graphs.get(&graph) else { return self.bad_handle(caller, "graph", graph) };
        let nodes = found.nodes.clone();
        let chains = chains(&nodes);
        let count = chains.iter().max().map_or(0, |last| last + 1);
        let lanes: Vec<Lane> = (0..count).map(|_| Lane(self.new_handle())).collect();
        let handle = self.new_handle();
        let executable = Executable {
            made: caller.call,
            nodes,
            lanes: chains.iter().map(|&chain| lanes[chain]).collect(),
            last: None,
        };
        self.executables.insert(handle, executable);
        Ok(handle)
    }

    pub(crate) fn destroy_executable(&mut self, caller: &Caller, executable: u64) -> Result<()> {
        if self.executables.remove(&executable).is_none() {
            return self.bad_handle(caller, "executable graph", executable);
        }
        Ok(())
    }

    pub(crate) fn executable_exists(&mut self, caller: &Caller, executable: u64) -> Result<()> {
        if self.executables.contains_key(&executable) {
            return Ok(());
        }
        self.bad_handle(caller, "executable graph", executable)
    }

    /// Launches a graph in stream order. Addresses mean what they mean now, not what they meant during the capture.
    pub(crate) fn launch_graph(&mut self, caller: &Caller, executable: u64, stream: u64) -> Result<()> {
        self.executable_exists(caller, executable)?;
        self.context_health(self.stream(stream)?.context)?;
        let Some(found) = self.executables.get(&executable) else { return Err(Code::INVALID_HANDLE) };
        let (nodes, lanes, last) = (found.nodes.clone(), found.lanes.clone(), found.last.clone());
        if self.capture_of(stream)?.is_some() {
            return self.capture_graph(stream, &nodes);
        }
        self.capture_forbids_legacy(stream)?;
        // All or nothing: a touch that must not be is found before anything is queued.
        let works: Vec<Work> = nodes
            .iter()
            .map(|n| self.work(caller.call, n.context, n.action.clone(), n.any_device))
            .collect::<Result<_>>()?;
        let after: Vec<_> = last.into_iter().collect();
        let start = self.push(caller, stream, Work::mark(), &after)?;
        let mut ops: Vec<(u64, Clock)> = Vec::new();
        let mut ends: BTreeSet<usize> = BTreeSet::new();
        for (n, (node, work)) in nodes.iter().zip(works).enumerate() {
            let mut clock = start.1.clone();
            let mut before = vec![start.0];
            for &earlier in &node.after {
                before.push(ops[earlier].0);
                clock.join(&ops[earlier].1);
                ends.remove(&earlier);
            }
            ops.push(self.push_on(caller, (node.context, lanes[n]), work, before, clock)?);
            ends.insert(n);
        }
        let ends: Vec<_> = ends.into_iter().map(|n| ops[n].clone()).collect();
        let end = self.push(caller, stream, Work::mark(), &ends)?;
        if let Some(found) = self.executables.get_mut(&executable) {
            found.last = Some(end);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_a_path_and_every_node_has_one() {
        let node = |after: &[usize]| Node {
            context: 0,
            action: Action::Mark,
            any_device: false,
            after: after.to_vec(),
        };
        // A fork and a join: 0 -> 1 -> 3, 0 -> 2 -> 3, and 4 beside them.
        let nodes = [node(&[]), node(&[0]), node(&[0]), node(&[1, 2]), node(&[])];
        assert_eq!(chains(&nodes), [0, 0, 1, 0, 2]);
    }
}
