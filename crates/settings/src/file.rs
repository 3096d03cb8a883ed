//! A configuration file: TOML, read so that every complaint names file and line.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::layers::{Layers, Origin};
use crate::mistakes::Mistakes;
use crate::nearest::nearest;
use crate::schema::{Key, Schema};
use crate::value::Given;

const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a file and the drop-ins beside it (`FILE.d/*.toml`, in the order of their names) into `layers`. Returns the files
/// read. A missing file is an error only when `required`.
pub(crate) fn read(path: &Path, required: bool, layers: &mut Layers, mistakes: &mut Mistakes) -> Vec<PathBuf> {
    let mut read = Vec::new();
    if required || path.exists() {
        read.push(path.to_owned());
    }
    read.extend(mistakes.unless(drop_ins(path)).unwrap_or_default());
    for path in &read {
        let text = contents(path).map_err(|why| format!("cannot read {}: {why}", path.display()));
        if let Some(text) = mistakes.unless(text) {
            parse_with(path, &text, layers, mistakes);
        }
    }
    read
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
    let mut mistakes = Mistakes::default();
    parse_with(path, text, layers, &mut mistakes);
    mistakes.none()
}

fn parse_with(path: &Path, text: &str, layers: &mut Layers, mistakes: &mut Mistakes) {
    let at = |offset: usize| Origin::File { path: path.to_owned(), line: line(text, offset) };
    let root = mistakes.unless(DeTable::parse(text).map_err(|error| {
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
    }));
    let Some(root) = root else { return };
    let schema = layers.schema();
    // A section of a later version is told of once, not with each of its keys.
    let mut later = BTreeSet::new();
    for entry in entries(schema, root.get_ref()) {
        let is_later = |section: &&str| schema.later.iter().any(|(later, _)| later == section);
        if let Some(section) = entry.section.filter(is_later)
            && !later.insert(section)
        {
            continue;
        }
        let place = at(entry.span.start);
        let key = entry.key(schema, path).map_err(|why| format!("{place}: {why}"));
        if let Some(key) = mistakes.unless(key).flatten() {
            mistakes.unless(layers.give(key, &given(entry.value), place));
        }
    }
}

/// A key of a section; without a section, one that stands at the top.
struct Entry<'a> {
    section: Option<&'a str>,
    name: &'a str,
    value: &'a DeValue<'a>,
    span: Range<usize>,
}

/// All entries in the order of the text, and so the mistakes.
fn entries<'a>(schema: &'static Schema, root: &'a DeTable<'a>) -> Vec<Entry<'a>> {
    let mut all = Vec::new();
    for (name, value) in root.iter() {
        let section = name.get_ref().as_ref();
        let known = schema.sections.iter().chain(schema.later).any(|(known, _)| *known == section);
        match value.get_ref() {
            DeValue::Table(table) if known => {
                for (name, value) in table.iter() {
                    // A section within the section.
                    let inner = schema.sections.iter().find(|(inner, _)| {
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
    fn key(&self, schema: &'static Schema, path: &Path) -> Result<Option<&'static Key>, String> {
        let Some(section) = self.section else { return self.top_level(schema).map(Some) };
        let table = match self.value {
            DeValue::Table(table) => Some(table),
            _ => None,
        };
        let full = format!("{section}.{}", self.name);
        for (later, why) in schema.later {
            if *later == full && table.is_some_and(|table| table.is_empty()) {
                return Ok(None);
            }
            if *later == section || *later == full {
                return Err(format!("[{later}]: {why}"));
            }
        }
        if let Some(key) = schema.find(section, self.name) {
            return Ok(Some(key));
        }
        // A key of another section is more likely than a slip.
        let elsewhere = schema.keys.iter().find(|key| key.name == self.name);
        let meant = match elsewhere {
            // Whoever appends a line to a file means the section that the line belongs to, not the last one.
            Some(Key { name, section, .. }) => Some(format!(
                "`{name}` of [{section}]: write it below that line, or below a [{section}] of its own in {}/NAME.toml",
                folder_beside(path).display()
            )),
            None => {
                let known = schema.keys_in(section).map(|key| key.name);
                nearest(self.name, known).map(|near| format!("`{near}`"))
            }
        };
        let hint = schema.hint(meant.map(|meant| format!("the nearest known key is {meant}")));
        Err(format!("unknown key `{}` in [{section}]; {hint}", escaped(self.name)))
    }

    fn top_level(&self, schema: &'static Schema) -> Result<&'static Key, String> {
        if let Some((section, _)) = schema.top_level.filter(|(_, name)| self.name == *name) {
            return Ok(schema.find(section, self.name).expect("it is in the table"));
        }
        let name = escaped(self.name);
        if schema.sections.iter().any(|(section, _)| *section == self.name) {
            return Err(format!("`{name}` is a section: write [{name}] and its keys below"));
        }
        if let DeValue::Table(_) = self.value {
            let meant = nearest(self.name, schema.sections.iter().map(|(section, _)| *section));
            let hint = schema.hint(meant.map(|meant| format!("the nearest known section is [{meant}]")));
            return Err(format!("unknown section [{name}]; {hint}"));
        }
        let all = schema.keys.iter().map(|key| key.name);
        let meant = nearest(self.name, all).and_then(|meant| schema.keys.iter().find(|key| key.name == meant));
        let hint = schema
            .hint(meant.map(|Key { section, name, .. }| format!("the nearest known key is `{name}` of [{section}]")));
        Err(format!("unknown key `{name}` outside of a section; {hint}"))
    }
}

/// A TOML value without its text.
pub(crate) fn given(value: &DeValue<'_>) -> Given {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::SCHEMA;

    fn parsed(text: &str) -> Result<Layers, String> {
        let mut layers = Layers::new(&SCHEMA);
        parse(Path::new("c.toml"), text, &mut layers)?;
        Ok(layers)
    }

    #[test]
    fn sections_may_lie_in_sections_and_one_key_at_the_top() {
        let layers = parsed("sync = false\n[storage]\ndata_dir = \"/x\"\n[storage.cache]\nsize = \"2 KiB\"\n").unwrap();
        assert!(!layers.switch("storage", "sync"));
        assert_eq!((layers.text("storage", "data_dir"), layers.number("storage.cache", "size")), ("/x", 2048));
        assert_eq!(layers.origin("storage.cache", "size").to_string(), "c.toml:5");
        assert_eq!(parsed("[storage]\ncache.size = 3\n").unwrap().number("storage.cache", "size"), 3);
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("[storage]\nsinc = true\n", "c.toml:2: unknown key `sinc` in [storage]; the nearest known key is `sync`"),
            (
                "[storage]\nbogus = true\n",
                "c.toml:2: unknown key `bogus` in [storage]; see tiny-store --print-default-config",
            ),
            (
                "bogus = 1\n",
                "c.toml:1: unknown key `bogus` outside of a section; see tiny-store --print-default-config",
            ),
            ("[bogus]\n", "c.toml:1: unknown section [bogus]; see tiny-store --print-default-config"),
            (
                "[storage]\nsize = 1\n",
                "c.toml:2: unknown key `size` in [storage]; the nearest known key is `size` of [storage.cache]: write it \
                 below that line, or below a [storage.cache] of its own in c.toml.d/NAME.toml",
            ),
            (
                "sise = 1\n",
                "c.toml:1: unknown key `sise` outside of a section; the nearest known key is `size` of [storage.cache]",
            ),
            ("[strage]\n", "c.toml:1: unknown section [strage]; the nearest known section is [storage]"),
            ("log = 1\n", "c.toml:1: `log` is a section: write [log] and its keys below"),
            ("[auth]\nuser = 1\n", "c.toml:2: [auth]: there are no users"),
            ("[auth]\nuser = 1\npassword = 2\n", "c.toml:2: [auth]: there are no users"),
            ("[storage.secret]\nkey = 1\n", "c.toml:1: [storage.secret]: nothing is secret"),
            ("[storage]\nsync = 1\n", "c.toml:2: storage.sync must be true or false, not 1"),
            (
                "[storage]\nsync = 1\nbogus = 1\n",
                "c.toml:2: storage.sync must be true or false, not 1; and c.toml:3: unknown key `bogus` in [storage]; see \
                 tiny-store --print-default-config",
            ),
            (
                "[log]\nlevel = \"info\"\nlevel = \"warn\"\n",
                "c.toml:3: duplicate key `level`: each section and key may stand once, additions go into c.toml.d/NAME.toml",
            ),
        ];
        for (text, line) in cases {
            assert_eq!(parsed(text).unwrap_err(), line);
        }
        // What is announced may stand there empty.
        parsed("[auth]\n[storage.secret]\n").unwrap();
    }

    #[test]
    fn any_text_is_answered_in_one_line() {
        const PIECES: [&str; 20] = [
            "[storage]",
            "[log]",
            "[storage.cache]",
            "[",
            "]",
            "\n",
            "=",
            "\"",
            "{",
            "}",
            ",",
            "#",
            ".",
            "data_dir",
            "x",
            "members",
            "size = 1",
            "[cluster]",
            " 1 ",
            "'''",
        ];
        for seed in 0..2_000 {
            let mut rng = base::Rng::new(seed);
            let text: String = (0..rng.below(12)).map(|_| PIECES[rng.below(20) as usize]).collect();
            if let Err(line) = parsed(&text) {
                assert!(!line.contains('\n') && line.starts_with("c.toml:"), "{line:?} of {text:?}");
            }
        }
    }
}
