//! Black-box tests: the real program on a real port, the simulator as upstream, upstream calls counted.
