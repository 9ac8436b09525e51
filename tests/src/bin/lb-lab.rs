//! Runs the test servers of one backend; started by the laboratory inside a namespace.

fn main() -> anyhow::Result<()> {
    lb_tests::server::run(lb_tests::server::Options::parse(std::env::args().skip(1))?)
}
