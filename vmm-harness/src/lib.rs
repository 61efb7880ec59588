//! A small VMM that runs the percpu guest and judges it.
