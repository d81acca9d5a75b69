//! A test's hand on the simulated CUDA driver.
