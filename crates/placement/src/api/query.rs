//! What stands behind `?` in a request. A parameter that a page does not know is an error: an answer that leaves out what was
//! asked for would be taken for one that does not.

use super::http::{PageError, bad_request};

pub struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// `known`: what the page takes.
    pub fn of(text: &str, known: &[&str]) -> Result<Query, PageError> {
        let mut all: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(bad_request(format!("unknown parameter `{}`; known: {known}", name.escape_debug())));
            }
            if all.iter().any(|(there, _)| there == name) {
                return Err(bad_request(format!("`{name}` stands there twice")));
            }
            all.push((name.to_owned(), unescaped(&value.replace('+', "%20"))?));
        }
        Ok(Query(all))
    }

    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| &value[..])
    }

    pub fn text(&self, name: &str) -> Result<Option<String>, PageError> {
        let text = self.bytes(name).map(|bytes| String::from_utf8(bytes.to_vec()));
        text.transpose().map_err(|_| bad_request(format!("{name}= takes text")))
    }

    /// `what`: in words.
    pub fn number(&self, name: &str, what: &str) -> Result<Option<u64>, PageError> {
        let number = self.text(name)?.map(|text| text.parse());
        number.transpose().map_err(|_| bad_request(format!("{name}= takes {what}")))
    }
}

/// A part of a URL, in which any byte may be written as `%XX`.
pub fn unescaped(part: &str) -> Result<Vec<u8>, PageError> {
    let wrong = || bad_request(format!("`{}`: two hexadecimal digits stand behind %", part.escape_debug()));
    let mut bytes = part.bytes();
    let mut out = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or_else(wrong);
        out.push((digit()? << 4 | digit()?) as u8);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        match Query::of(text, &["key", "limit"]).and_then(|query| query.number("limit", "a number")) {
            Err(PageError::Http(_, why)) => why,
            _ => String::new(),
        }
    }

    #[test]
    fn parameters_are_those_that_a_page_takes() {
        let query = Query::of("key=a%2Fb+c%FF&limit=3", &["key", "limit"]).ok().unwrap();
        assert_eq!(query.bytes("key"), Some(&b"a/b c\xFF"[..]));
        assert_eq!(query.number("limit", "a number").ok(), Some(Some(3)));
        assert!(query.text("key").is_err() && query.bytes("other").is_none());
        assert!(Query::of("", &[]).is_ok_and(|query| query.bytes("key").is_none()));
        assert_eq!(refused("lim=3"), "unknown parameter `lim`; known: key, limit");
        assert_eq!(refused("limit=3&limit=4"), "`limit` stands there twice");
        assert_eq!(refused("limit=many"), "limit= takes a number");
        assert!(refused("key=%4").contains("two hexadecimal digits"));
    }
}
