//! Network-namespace laboratory for end-to-end tests and the demo.
