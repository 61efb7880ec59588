//! The arguments of an attribute: `name = value` or `name`, with commas between.

use proc_macro::{Delimiter, TokenStream, TokenTree};

/// Arguments that were not asked for yet.
pub struct Arguments(Vec<(String, Value)>);

/// What stands behind an argument's `=`, as text; nothing, if there is none.
pub type Value = Option<String>;

impl Arguments {
    pub fn parse(tokens: TokenStream) -> Result<Self, String> {
        let mut arguments = Vec::new();
        let mut tokens = tokens.into_iter();
        while let Some(token) = tokens.next() {
            let TokenTree::Ident(name) = token else {
                return Err(format!("an argument begins with its name, not with `{token}`"));
            };
            let mut value = None;
            for token in tokens.by_ref() {
                match (&token, &mut value) {
                    (TokenTree::Punct(comma), _) if comma.as_char() == ',' => break,
                    (TokenTree::Punct(equals), None) if equals.as_char() == '=' => {
                        value = Some(String::new());
                    }
                    (TokenTree::Group(group), Some(_)) if group.delimiter() != Delimiter::None => {
                        return Err(format!("`{name}` is not to be `{token}`"));
                    }
                    (_, Some(value)) => *value += &token.to_string(),
                    (_, None) => return Err(format!("`{name}` is followed by `{token}`")),
                }
            }
            arguments.push((name.to_string(), value));
        }
        Ok(Self(arguments))
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.remove(at).1)
    }

    fn value<T>(
        &mut self,
        name: &str,
        what: &str,
        read: impl FnOnce(String) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.and_then(read) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("`{name}` wants {what}")),
        }
    }

    /// A number.
    pub fn number(&mut self, name: &str) -> Result<Option<u64>, String> {
        self.value(name, "a number, as in `cpus = 4`", |value| value.parse().ok())
    }

    /// A text, in its quotes.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        self.value(name, "a text, as in `name = \"churn\"`", |value| {
            (value.len() > 2 && value.starts_with('"')).then_some(value)
        })
    }

    /// A path to a function.
    pub fn path(&mut self, name: &str) -> Result<Option<String>, String> {
        self.value(name, "a function, as in `init = set_up`", |value| {
            let named = value.starts_with(|first: char| first.is_alphabetic() || first == '_');
            (named || value.starts_with("::")).then_some(value)
        })
    }

    /// `true` or `false`.
    pub fn truth(&mut self, name: &str) -> Result<Option<bool>, String> {
        self.value(name, "`true` or `false`", |value| value.parse().ok())
    }

    /// Whether the name is there, which has no value.
    pub fn flag(&mut self, name: &str) -> Result<bool, String> {
        match self.take(name) {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(_)) => Err(format!("`{name}` has no value")),
        }
    }

    /// Refuses what nobody has asked for.
    pub fn none_left(&self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!("there is no argument `{name}`, or it is there twice")),
        }
    }
}
