//! `backstay set`: what is changed about a disk only when somebody says so.

use backstay_engine::home::Home;
use backstay_engine::protection::Protection;
use backstay_engine::record::Record;
use backstay_engine::requests::{Asked, ask};
use backstay_engine::vault_place;
use backstay_format::control::Request;
use backstay_types::DiskName;
use clap::Args;

use super::vault::id;
use crate::context::Context;
use crate::error::{Context as _, Result, bail, refused};

/// Change the vault of a disk
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay set db --vault s3://backups/prod
  backstay set db --vault file:///mnt/new/vault   the same vault, moved

A disk's vault is recorded with its first point. Only this command changes it; no setting and no --vault option \
does. Existing points stay in the old vault. In another vault the disk starts over: the next cycle ships all of it. \
The vault must exist: backstay vault init makes one.

Use this command, too, if a disk should start over in a vault that lost its points, or if another vault at the old \
URL is meant.")]
pub struct Set {
    /// The disk's name
    name: DiskName,
    /// The vault's URL
    #[arg(long, value_name = "URL")]
    vault: String,
}

impl Set {
    pub fn run(self, context: &Context) -> Result<()> {
        let (name, url) = (&self.name, self.vault.as_str());
        let paths = context.roots.disk(name);
        if !paths.state.join("super").exists() {
            bail!("there is no disk {name} in {}", context.roots.state.display());
        }
        let vault =
            context.config.vaults.open_whichever(url).with_context(|| format!("disk {name}"))?;
        vault.check_usable().with_context(|| format!("disk {name}"))?;
        // While a cycle ships to the old one, nothing is changed; and none begins until this is done.
        let mut driver = context.driver(name).ok();
        if let Some(driver) = &mut driver {
            driver
                .ask(&Request::Lease { client: "set".into() })
                .with_context(|| format!("disk {name}: nothing was changed"))?;
            let served = driver.status()?.served;
            let on_it = vault_place::directory(url).is_some_and(|dir| {
                vault_place::of_directory(&dir).is_ok_and(|at| at.is_on(&served))
            });
            if on_it {
                let message =
                    format!("disk {name}: vault {url} is on this very disk. Nothing was changed");
                return Err(refused(message));
            }
        }
        if let Some(id) = vault.id() {
            context.config.vaults.known().accept(url, id)?;
        }
        let before = Home::load(&paths.state).ok().flatten();
        // The same vault in another place keeps what is known of it, unless that is what is to be said.
        let same = before.as_ref().is_some_and(|home| home.vault.is_some() && home.is(&vault));
        let moved = same && before.as_ref().is_some_and(|home| home.url != url);
        let has_points = moved && before.as_ref().is_some_and(|home| home.has_points);
        Home { has_points, ..Home::in_vault(&vault) }.save(&paths.state)?;
        if let Ok(Some(protection)) = Protection::load(&paths.state) {
            let protection = Protection { vault: url.into(), ..protection };
            protection.save(&paths.state).with_context(|| format!("disk {name}"))?;
        }
        let mut record = Record::load(&paths.state);
        record.resume();
        record.save(&paths.state).with_context(|| format!("disk {name}"))?;
        drop(driver);
        ask(&context.roots.state, &Asked::Look(name.clone()))?;
        if context.globals.json {
            let value = serde_json::json!({
                "name": name, "vault": url, "id": vault.id(), "before": before.map(|home| home.url),
            });
            return context.print_json(&value);
        }
        if !context.globals.quiet {
            let before = before.filter(|_| !same).map_or_else(String::new, |home| {
                format!(
                    "; its points in {} stay there, and the next cycle ships the whole disk",
                    home.shown()
                )
            });
            println!("{name}: goes to {url}{} from now on{before}", id(&vault));
        }
        Ok(())
    }
}
