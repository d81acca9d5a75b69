// cp.async: copies that a thread starts, groups and waits for.
#pragma once

#include "machine.h"

namespace granule_emu {

// Forgets what the thread started and never waited for.
void drop_async_copies(Thread& thread);

}  // namespace granule_emu
