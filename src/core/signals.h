// Signals as flags that the training loop looks at between steps. Design section 10:
// USR1, TERM, INT: checkpoint and leave with exit code 75; USR2: checkpoint and go on.
// The flags belong to the process, as signals do; they are safe to read from any thread.
#pragma once

namespace maniple {

// Installs the handlers (idempotent) and forgets requests made before. Interrupted system calls are
// restarted.
void install_signals();

// Whether the process was asked to stop, and by which signal (0: not asked). Stays set.
bool stop_requested();
int stop_signal();

// Whether a checkpoint was asked for since the last call of take_checkpoint_request, which clears
// the request: several signals before one look make one checkpoint.
bool checkpoint_requested();
bool take_checkpoint_request();

// Makes the kernel kill this process when its parent (mpirun, a launcher) dies. Not inherited by
// children.
void set_parent_death_signal();

}  // namespace maniple
