//! Devices, memory kinds, virtual memory, streams and events behind one handle.
