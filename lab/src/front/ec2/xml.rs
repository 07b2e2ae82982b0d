//! Writing XML.

use std::fmt::Display;

use quick_xml::escape::escape;

/// A document under construction.
pub(super) struct Xml(String);

impl Xml {
    pub(super) fn new() -> Xml {
        Xml("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned())
    }

    pub(super) fn finish(self) -> String {
        self.0
    }

    /// `<name>value</name>`.
    pub(super) fn text(&mut self, name: &str, value: impl Display) -> &mut Xml {
        let value = value.to_string();
        self.0.push_str(&format!("<{name}>{}</{name}>", escape(value.as_str())));
        self
    }

    /// The same for a value that may be missing.
    pub(super) fn option(&mut self, name: &str, value: Option<impl Display>) -> &mut Xml {
        if let Some(value) = value {
            self.text(name, value);
        }
        self
    }

    /// `<name>…</name>` with whatever `inside` writes.
    pub(super) fn nest(&mut self, name: &str, inside: impl FnOnce(&mut Xml)) -> &mut Xml {
        self.open(name, "", inside)
    }

    /// `<name attributes>…</name>`.
    pub(super) fn open(&mut self, name: &str, attributes: &str, inside: impl FnOnce(&mut Xml)) -> &mut Xml {
        self.0.push_str(&format!("<{name}{attributes}>"));
        inside(self);
        self.0.push_str(&format!("</{name}>"));
        self
    }

    /// EC2's form of a list: `<name><item>…</item>…</name>`.
    pub(super) fn list<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        each: impl Fn(&mut Xml, T),
    ) -> &mut Xml {
        self.nest(name, |xml| {
            for item in items {
                xml.nest("item", |xml| each(xml, item));
            }
        })
    }
}
