//! A growable, forkable KV cache on virtual memory.
