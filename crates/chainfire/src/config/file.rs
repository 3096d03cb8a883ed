//! A configuration file: TOML, read so that every complaint names file and line.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::keys::{self, Key, LATER, SECTIONS, TOP_LEVEL};
use super::layers::{Layers, Origin};
use super::nearest::nearest;
use super::value::Given;

const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a file and the drop-ins beside it (`FILE.d/*.toml`, in the order of their names) into `layers`. Returns the files
/// read. A missing file is an error only when `required`.
pub fn read(path: &Path, required: bool, layers: &mut Layers) -> Result<Vec<PathBuf>, String> {
    let mut read = Vec::new();
    if required || path.exists() {
        read.push(path.to_owned());
    }
    read.extend(drop_ins(path)?);
    for path in &read {
        let text = contents(path).map_err(|why| format!("cannot read {}: {why}", path.display()))?;
        parse(path, &text, layers)?;
    }
    Ok(read)
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, String> {
    let folder = folder_beside(path);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if file.extension().is_some_and(|extension| extension == "toml") && !hidden {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// `FILE.d`; beside a drop-in, the folder that it lies in.
fn folder_beside(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| parent.extension().is_some_and(|extension| extension == "d"));
    parent.map_or_else(|| path.with_added_extension("d"), Path::to_owned)
}

fn contents(path: &Path) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if metadata.is_dir() {
        return Err("it is a folder".to_owned());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// Reads the text of the file `path` into `layers`.
pub fn parse(path: &Path, text: &str, layers: &mut Layers) -> Result<(), String> {
    let at = |offset: usize| Origin::File { path: path.to_owned(), line: line(text, offset) };
    let root = DeTable::parse(text).map_err(|error| {
        let place = at(error.span().map_or(0, |span| span.start));
        let hint = if error.message().contains("duplicate key") {
            let repeated = error.span().and_then(|span| text[span.start..].lines().next()).unwrap_or_default();
            format!(
                " `{}`: each section and key may stand once, additions go into {}/NAME.toml",
                repeated.split(['=', ']']).next().unwrap_or_default().trim_matches(['[', ' ']),
                folder_beside(path).display()
            )
        } else {
            String::new()
        };
        format!("{place}: {}{hint}", error.message().replace('\n', "; "))
    })?;
    for entry in entries(root.get_ref()) {
        let place = at(entry.span.start);
        let key = entry.key(path).map_err(|why| format!("{place}: {why}"))?;
        if let Some(key) = key {
            layers.give(key, &given(entry.value), place)?;
        }
    }
    Ok(())
}

/// A key of a section; without a section, one that stands at the top.
struct Entry<'a> {
    section: Option<&'a str>,
    name: &'a str,
    value: &'a DeValue<'a>,
    span: Range<usize>,
}

/// All entries in the order of the text, so that the first mistake is the one complained about.
fn entries<'a>(root: &'a DeTable<'a>) -> Vec<Entry<'a>> {
    let mut all = Vec::new();
    for (name, value) in root.iter() {
        let section = name.get_ref().as_ref();
        let known = SECTIONS.iter().chain(LATER).any(|(known, _)| *known == section);
        match value.get_ref() {
            DeValue::Table(table) if known => {
                for (name, value) in table.iter() {
                    // A section within the section.
                    let inner = SECTIONS.iter().find(|(inner, _)| {
                        inner.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) == Some(name.get_ref())
                    });
                    match (inner, value.get_ref()) {
                        (Some((inner, _)), DeValue::Table(table)) => {
                            all.extend(table.iter().map(|(name, value)| Entry::new(Some(inner), name, value)));
                        }
                        _ => all.push(Entry::new(Some(section), name, value)),
                    }
                }
            }
            _ => all.push(Entry::new(None, name, value)),
        }
    }
    all.sort_by_key(|entry| entry.span.start);
    all
}

impl<'a> Entry<'a> {
    fn new(section: Option<&'a str>, name: &'a Spanned<DeString<'a>>, value: &'a Spanned<DeValue<'a>>) -> Entry<'a> {
        Entry { section, name: name.get_ref(), value: value.get_ref(), span: name.span() }
    }

    /// The setting that the entry of the file `path` names; none where an announced section stands empty.
    fn key(&self, path: &Path) -> Result<Option<&'static Key>, String> {
        let Some(section) = self.section else { return self.top_level().map(Some) };
        let table = match self.value {
            DeValue::Table(table) => Some(table),
            _ => None,
        };
        let full = format!("{section}.{}", self.name);
        for (later, why) in LATER {
            if *later == full && table.is_some_and(|table| table.is_empty()) {
                return Ok(None);
            }
            if *later == section || *later == full {
                return Err(format!("[{later}]: {why}"));
            }
        }
        if let Some(key) = keys::find(section, self.name) {
            return Ok(Some(key));
        }
        // A key of another section is more likely than a slip.
        let elsewhere = keys::KEYS.iter().find(|key| key.name == self.name);
        let meant = match elsewhere {
            // Whoever appends a line to a file means the section that the line belongs to, not the last one.
            Some(Key { name, section, .. }) => format!(
                "`{name}` of [{section}]: write it below that line, or below a [{section}] of its own in {}/NAME.toml",
                folder_beside(path).display()
            ),
            None => format!("`{}`", nearest(self.name, keys::names_in(section)).unwrap_or_default()),
        };
        Err(format!("unknown key `{}` in [{section}]; the nearest known key is {meant}", escaped(self.name)))
    }

    fn top_level(&self) -> Result<&'static Key, String> {
        let (section, name) = TOP_LEVEL;
        if self.name == name {
            return Ok(keys::find(section, name).expect("it is in the table"));
        }
        let name = escaped(self.name);
        if SECTIONS.iter().any(|(section, _)| *section == self.name) {
            return Err(format!("`{name}` is a section: write [{name}] and its keys below"));
        }
        if let DeValue::Table(_) = self.value {
            let meant = nearest(self.name, SECTIONS.iter().map(|(section, _)| *section)).unwrap_or_default();
            return Err(format!("unknown section [{name}]; the nearest known section is [{meant}]"));
        }
        let all = keys::KEYS.iter().map(|key| key.name);
        let meant = nearest(self.name, all).and_then(|meant| keys::KEYS.iter().find(|key| key.name == meant));
        let meant = meant.expect("there are keys");
        let (section, meant) = (meant.section, meant.name);
        Err(format!("unknown key `{name}` outside of a section; the nearest known key is `{meant}` of [{section}]"))
    }
}

/// A TOML value without its text.
pub fn given(value: &DeValue<'_>) -> Given {
    match value {
        DeValue::String(text) => Given::Text(text.clone().into_owned()),
        DeValue::Integer(number) => i128::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map_or(Given::Other("number that is too large"), Given::Number),
        DeValue::Boolean(on) => Given::Switch(*on),
        DeValue::Float(_) => Given::Other("fraction"),
        DeValue::Datetime(_) => Given::Other("date"),
        DeValue::Array(list) => Given::List(list.iter().map(|value| given(value.get_ref())).collect()),
        DeValue::Table(table) => {
            let fields = table.iter().map(|(name, value)| (name.get_ref().to_string(), given(value.get_ref())));
            Given::Table(fields.collect())
        }
    }
}

fn line(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

/// A quoted key may hold anything; a complaint stays one line.
fn escaped(name: &str) -> String {
    name.escape_debug().to_string()
}
