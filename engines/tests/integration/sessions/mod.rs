//! The owner of sessions on the fake backend: random sequences of what its users do, and who waits for whom.

mod sequences;
mod threads;
mod waiting;
mod world;
