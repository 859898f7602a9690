//! Lanes under paused time.
