//! Generates the messages and services with a compiler written in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["rpc.proto", "node.proto", "health.proto"], ["proto"])?;
    // What our own service answers is also printed as JSON.
    let json = "#[derive(serde::Serialize)]";
    tonic_prost_build::configure().message_attribute(".vpccni.node.v1", json).compile_fds(files)?;
    Ok(())
}
