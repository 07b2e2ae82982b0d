//! The pool, stepped by hand.

mod assigning;
mod growing;
mod property;
mod restoring;
mod shrinking;
mod waiting;
mod world;
