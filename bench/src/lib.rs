//! Programs that measure Mooring beside MooseFS, and criterion benches of the engines.
