//! The owner of a device's granules: budget, accounting, retire queue, ranges.
