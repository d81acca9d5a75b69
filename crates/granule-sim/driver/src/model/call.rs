//! Driver calls: their numbers, and the one that shall fail.

use crate::code::Code;
use std::fmt;

/// One call of the program to the driver. Shown as `cuMemMap #17`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) name: &'static str,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}", self.name, self.number)
    }
}

/// The counter of calls and the planned fault.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    made: u64,
    fault: Option<(u64, Code)>,
}

impl Calls {
    /// Calls that can fail, made so far.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// The `n`-th call from now fails with `code`; 1 is the next one. One fault at a time; it happens once.
    pub(crate) fn fail_nth(&mut self, n: u64, code: Code) {
        self.fault = Some((self.made.saturating_add(n.max(1)), code));
    }

    /// Drops the plan; true where it had not happened yet.
    pub(crate) fn clear_fault(&mut self) -> bool {
        self.fault.take().is_some()
    }

    /// Counts a call, and says whether it shall fail.
    pub(crate) fn enter(&mut self, name: &'static str) -> (Call, Option<Code>) {
        self.made += 1;
        let fault = self.fault.take_if(|(at, _)| *at == self.made).map(|(_, code)| code);
        (Call { number: self.made, name }, fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_nth_call_fails_once() {
        let mut calls = Calls::default();
        calls.enter("cuInit");
        calls.fail_nth(2, Code::OUT_OF_MEMORY);
        assert_eq!(calls.enter("cuMemAlloc").1, None);
        let (call, fault) = calls.enter("cuMemMap");
        assert_eq!((call.to_string().as_str(), fault), ("cuMemMap #3", Some(Code::OUT_OF_MEMORY)));
        assert_eq!(calls.enter("cuMemMap").1, None);
        assert!(!calls.clear_fault());
    }
}
