//! `backstay hooks`: try what makes a disk's points application-consistent.

use std::sync::atomic::AtomicBool;

use backstay_engine::hooks;
use backstay_host::clock;
use backstay_types::DiskName;
use backstay_vault::Vault;
use clap::Args;

use crate::context::Context;
use crate::error::{Context as _, Result, bail, failed};

/// Try a disk's hooks without a cycle: pre, freeze, thaw, post
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay hooks db
  backstay --json hooks db | jq .quiet_after_ms

Runs the hooks as a cycle does around its cut, but makes no recovery point. The application pauses for a moment. \
Fails if a point would not have been application-consistent. See docs/reference/hooks.md for the settings \
([disk.NAME.hooks]).")]
pub struct Hooks {
    /// The disk's name
    name: DiskName,
}

impl Hooks {
    pub fn run(self, context: &Context) -> Result<()> {
        let Self { name } = self;
        let backing = context.driver(&name)?.status()?.backing;
        let Some(hooks) = hooks::Hooks::of(&context.config, &context.roots, &name) else {
            bail!("disk {name} has no hooks: set [disk.{name}.hooks] in the configuration");
        };
        let vault = context.config.vaults.open(context.config.vault_of(&name)).ok();
        let avoid = vault.as_ref().and_then(Vault::local_dir).map(Into::into);
        let began = clock::monotonic();
        let mut quiesced =
            hooks.quiesce(avoid.into_iter().chain([backing]), &AtomicBool::new(false))?;
        let quiet = clock::monotonic();
        let consistency = quiesced.cut_is_over(true)?;
        let quiet_for = clock::since(quiet);
        let warning = quiesced.finish();
        let all = clock::since(began);
        if context.globals.json {
            context.print_json(&serde_json::json!({
                "name": name, "consistency": consistency, "warning": warning,
                "quiet_after_ms": (quiet - began).as_secs_f64() * 1e3,
                "quiet_for_ms": quiet_for.as_secs_f64() * 1e3,
                "all_ms": all.as_secs_f64() * 1e3,
            }))?;
        }
        if let Some(warning) = warning {
            return Err(failed!("{warning}")).with_context(|| format!("disk {name}"));
        }
        if !context.globals.json && !context.globals.quiet {
            println!(
                "{name}: a point would be application-consistent (pre commands and freeze {:.0} ms, \
                 then quiet for {:.1} ms, all done after {:.0} ms)",
                (quiet - began).as_secs_f64() * 1e3,
                quiet_for.as_secs_f64() * 1e3,
                all.as_secs_f64() * 1e3
            );
        }
        Ok(())
    }
}
