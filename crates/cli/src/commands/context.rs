//! `context list`, `use`, `set`, `remove`: they touch the user's own file and no server.

use serde_json::json;

use crate::args::ContextCommand;
use crate::contexts::Contexts;
use crate::failure::Failure;
use crate::output::{Format, Output};
use crate::settings::Global;

pub fn run(command: ContextCommand, given: &Global, out: &mut Output) -> Result<(), Failure> {
    let mut all = Contexts::load()?;
    match command {
        ContextCommand::List => return list(&all, out),
        ContextCommand::Use { name } => {
            all.find(&name)?;
            out.line(format!("commands go to {name}"))?;
            all.current = Some(name);
        }
        ContextCommand::Set { name } => {
            all.set(&name, given)?;
            out.line(format!(
                "context {name} is set; use it with --context {name}, or for good with `context use {name}`"
            ))?;
        }
        ContextCommand::Remove { name } => {
            all.find(&name)?;
            all.contexts.remove(&name);
            all.current.take_if(|current| *current == name);
            out.line(format!("context {name} is forgotten"))?;
        }
    }
    all.save()
}

fn list(all: &Contexts, out: &mut Output) -> Result<(), Failure> {
    let star = |name: &String| if all.current.as_ref() == Some(name) { "*" } else { "" };
    match out.format() {
        Format::Json => out.json(&json!({ "current": all.current, "contexts": all.contexts }))?,
        Format::Table => {
            let rows = all.contexts.iter().map(|(name, context)| {
                let file = |file: &Option<std::path::PathBuf>| {
                    file.as_ref().map_or(String::new(), |f| f.display().to_string())
                };
                vec![
                    star(name).to_owned(),
                    name.clone(),
                    context.endpoints.join(" "),
                    file(&context.cacert),
                    file(&context.cert),
                ]
            });
            out.table(&["", "NAME", "ENDPOINTS", "CACERT", "CERT"], rows)?;
        }
        Format::Simple => {
            for (name, context) in &all.contexts {
                out.line(format!("{}{name}, {}", star(name), context.endpoints.join(",")))?;
            }
        }
    }
    Ok(())
}
