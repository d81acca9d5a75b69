// Faults of the processor while a kernel runs end the launch instead of the process.
#pragma once

namespace granule_emu {

// From catch_faults to release_faults, a fault of this operating-system thread inside a kernel is the kernel's: it is
// recorded and the launch ends. All other faults go to whoever handled them before.
void catch_faults();
void release_faults();

}  // namespace granule_emu
