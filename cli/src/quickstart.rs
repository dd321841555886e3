//! placeholder while the parts below are written
use crate::args::Global;
use crate::failure::Failure;
use clap::Args;
#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    #[arg(long)]
    dir: Option<String>,
    #[arg(long)]
    nodes: Option<u8>,
    #[arg(long)]
    once: bool,
}
pub(crate) async fn run(_args: &QuickstartArgs, _global: &Global) -> Result<(), Failure> {
    Ok(())
}
