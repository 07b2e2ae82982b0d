//! JSON as container runtimes and other plugins write and read it: with Go's rules.
//!
//! The errors of a plugin's skeleton are compared byte for byte by people and programs, and they
//! quote Go's decoder; keys match whatever their case, a later duplicate wins, and half a
//! surrogate pair is replaced rather than refused. No JSON library of ours does that, so this
//! module does, and what it prints is what Go's encoder prints.

use std::fmt::Write as _;

/// A JSON value. Numbers stay text, objects stay in the order of the document.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// How deep arrays and objects may lie in one another; far beyond any network configuration.
const DEPTH_LIMIT: usize = 500;

impl Json {
    /// Reads one document.
    ///
    /// # Errors
    /// What Go's decoder would say, like `unexpected end of JSON input`.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value("looking for beginning of value", 0)?;
        match reader.next_visible() {
            None => Ok(value),
            Some(byte) => Err(invalid(byte, "after top-level value")),
        }
    }

    /// The field that Go would fill from `key`: the last one whose name matches whatever its case.
    pub(crate) fn field(&self, key: &str) -> Option<&Json> {
        let Json::Object(fields) = self else { return None };
        fields.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
    }

    /// Go's word for this kind of value in its type errors.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "bool",
            Json::Number(_) => "number",
            Json::String(_) => "string",
            Json::Array(_) => "array",
            Json::Object(_) => "object",
        }
    }

    /// A string value.
    pub(crate) fn string(text: impl Into<String>) -> Self {
        Json::String(text.into())
    }

    /// A number value.
    pub(crate) fn number(number: impl ToString) -> Self {
        Json::Number(number.to_string())
    }

    /// An object of the given fields, in their order.
    pub(crate) fn object<const N: usize>(fields: [(&str, Json); N]) -> Self {
        Json::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The value over several lines with four spaces a level and no newline at the end.
    pub(crate) fn pretty(&self) -> String {
        let mut text = String::with_capacity(512);
        self.print(&mut text, Some(0));
        text
    }

    /// The value on one line, without a newline at the end.
    pub(crate) fn compact(&self) -> String {
        let mut text = String::with_capacity(256);
        self.print(&mut text, None);
        text
    }

    fn print(&self, text: &mut String, level: Option<usize>) {
        match self {
            Json::Null => text.push_str("null"),
            Json::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
            Json::Number(digits) => text.push_str(digits),
            Json::String(value) => print_string(text, value),
            Json::Array(items) => print_items(text, level, ['[', ']'], items, |text, item, level| {
                item.print(text, level);
            }),
            Json::Object(fields) => {
                print_items(text, level, ['{', '}'], fields, |text, (name, value), level| {
                    print_string(text, name);
                    text.push_str(if level.is_some() { ": " } else { ":" });
                    value.print(text, level);
                });
            }
        }
    }
}

fn print_items<T>(
    text: &mut String,
    level: Option<usize>,
    [open, close]: [char; 2],
    items: &[T],
    mut print: impl FnMut(&mut String, &T, Option<usize>),
) {
    text.push(open);
    let inner = level.map(|level| level + 1);
    for (position, item) in items.iter().enumerate() {
        if position > 0 {
            text.push(',');
        }
        new_line(text, inner);
        print(text, item, inner);
    }
    if !items.is_empty() {
        new_line(text, level);
    }
    text.push(close);
}

fn new_line(text: &mut String, level: Option<usize>) {
    if let Some(level) = level {
        text.push('\n');
        text.extend(std::iter::repeat_n("    ", level));
    }
}

fn print_string(text: &mut String, value: &str) {
    text.push('"');
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            // Go escapes these so that a document can stand inside HTML and scripts.
            '\0'..'\u{20}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escape(text, character),
            _ => text.push(character),
        }
    }
    text.push('"');
}

fn escape(text: &mut String, character: char) {
    // Writing to a String cannot fail.
    let _ = write!(text, "\\u{:04x}", u32::from(character));
}

/// `text` in quotes, as Go's `%q` prints it.
pub(crate) fn go_quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            '\0'..'\u{20}' | '\u{7f}' => {
                let _ = write!(quoted, "\\x{:02x}", u32::from(character));
            }
            '\u{80}'..'\u{a0}' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

fn invalid(byte: u8, context: &str) -> String {
    let shown = match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        _ => {
            let quoted = go_quote(&char::from(byte).to_string());
            format!("'{}'", &quoted[1..quoted.len() - 1])
        }
    };
    format!("invalid character {shown} {context}")
}

fn ended() -> String {
    "unexpected end of JSON input".to_owned()
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self) -> Result<u8, String> {
        let byte = self.peek().ok_or_else(ended)?;
        self.at += 1;
        Ok(byte)
    }

    /// Skips white space and shows the byte after it.
    fn next_visible(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    fn take_visible(&mut self) -> Result<u8, String> {
        self.next_visible();
        self.take()
    }

    fn value(&mut self, context: &str, depth: usize) -> Result<Json, String> {
        if depth > DEPTH_LIMIT {
            return Err("exceeded max depth".to_owned());
        }
        match self.take_visible()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.quoted().map(Json::String),
            b't' => self.literal("true", Json::Bool(true)),
            b'f' => self.literal("false", Json::Bool(false)),
            b'n' => self.literal("null", Json::Null),
            byte @ (b'-' | b'0'..=b'9') => self.numeral(byte),
            byte => Err(invalid(byte, context)),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, String> {
        let mut fields = Vec::new();
        if self.next_visible() == Some(b'}') {
            self.at += 1;
            return Ok(Json::Object(fields));
        }
        loop {
            match self.take_visible()? {
                b'"' => {}
                byte => return Err(invalid(byte, "looking for beginning of object key string")),
            }
            let name = self.quoted()?;
            match self.take_visible()? {
                b':' => {}
                byte => return Err(invalid(byte, "after object key")),
            }
            let value = self.value("looking for beginning of value", depth + 1)?;
            fields.push((name, value));
            match self.take_visible()? {
                b',' => {}
                b'}' => return Ok(Json::Object(fields)),
                byte => return Err(invalid(byte, "after object key:value pair")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Json, String> {
        let mut items = Vec::new();
        if self.next_visible() == Some(b']') {
            self.at += 1;
            return Ok(Json::Array(items));
        }
        loop {
            items.push(self.value("looking for beginning of value", depth + 1)?);
            match self.take_visible()? {
                b',' => {}
                b']' => return Ok(Json::Array(items)),
                byte => return Err(invalid(byte, "after array element")),
            }
        }
    }

    fn literal(&mut self, word: &str, value: Json) -> Result<Json, String> {
        for expected in word.bytes().skip(1) {
            let byte = self.take()?;
            if byte != expected {
                let context = format!("in literal {word} (expecting '{}')", char::from(expected));
                return Err(invalid(byte, &context));
            }
        }
        Ok(value)
    }

    fn numeral(&mut self, first: u8) -> Result<Json, String> {
        let start = self.at - 1;
        let mut digit = first;
        if first == b'-' {
            digit = self.take()?;
            if !digit.is_ascii_digit() {
                return Err(invalid(digit, "in numeric literal"));
            }
        }
        if digit != b'0' {
            self.digits();
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits("after decimal point in numeric literal")?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.some_digits("in exponent of numeric literal")?;
        }
        Ok(Json::Number(String::from_utf8_lossy(&self.text[start..self.at]).into_owned()))
    }

    fn some_digits(&mut self, context: &str) -> Result<(), String> {
        match self.take()? {
            b'0'..=b'9' => {
                self.digits();
                Ok(())
            }
            byte => Err(invalid(byte, context)),
        }
    }

    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
    }

    /// The rest of a string whose opening quote has been taken.
    fn quoted(&mut self) -> Result<String, String> {
        let mut bytes = Vec::new();
        loop {
            match self.take()? {
                b'"' => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                b'\\' => self.escaped(&mut bytes)?,
                byte @ 0..0x20 => return Err(invalid(byte, "in string literal")),
                byte => bytes.push(byte),
            }
        }
    }

    fn escaped(&mut self, bytes: &mut Vec<u8>) -> Result<(), String> {
        let character = match self.take()? {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            byte @ (b'\\' | b'/' | b'"') => char::from(byte),
            b'u' => self.unicode()?,
            byte => return Err(invalid(byte, "in string escape code")),
        };
        bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    /// The character that four hexadecimal digits name, with those of its other half if it has one.
    fn unicode(&mut self) -> Result<char, String> {
        let high = self.four_digits()?;
        if !(0xd800..0xe000).contains(&high) {
            return Ok(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        let rest = self.text.get(self.at..).unwrap_or_default();
        if high < 0xdc00 && rest.starts_with(b"\\u") {
            let before = self.at;
            self.at += 2;
            let low = self.four_digits()?;
            if (0xdc00..0xe000).contains(&low) {
                let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = before;
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn four_digits(&mut self) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..4 {
            let byte = self.take()?;
            let digit = char::from(byte).to_digit(16);
            let digit = digit.ok_or_else(|| invalid(byte, "in \\u hexadecimal character escape"))?;
            code = code * 16 + digit;
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn broken_documents_are_described_as_go_describes_them() {
        for (text, error) in [
            ("", "unexpected end of JSON input"),
            ("  \n", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("{\"a\":tru", "unexpected end of JSON input"),
            ("not json", "invalid character 'o' in literal null (expecting 'u')"),
            ("xyz", "invalid character 'x' looking for beginning of value"),
            ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("01", "invalid character '1' after top-level value"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\\u12g4\"", "invalid character 'g' in \\u hexadecimal character escape"),
            ("\"a\nb\"", "invalid character '\\n' in string literal"),
            ("\u{1}", "invalid character '\\x01' looking for beginning of value"),
            ("'", "invalid character '\\'' looking for beginning of value"),
        ] {
            assert_eq!(Json::parse(text.as_bytes()).unwrap_err(), error, "{text:?}");
        }
    }

    #[test]
    fn a_key_matches_whatever_its_case_and_the_last_one_wins() {
        let document = Json::parse(br#"{"NAME":"a","other":1,"Name":"b"}"#).unwrap();

        assert_eq!(document.field("name"), Some(&Json::string("b")));
    }

    #[test]
    fn strings_are_read_with_their_escapes_and_broken_ones_are_replaced() {
        let document = Json::parse(b"[\"\\u00e9\\n\\/\\ud83d\\ude00\", \"\\ud83dx\", \"a\xffb\"]").unwrap();

        let expected = ["\u{e9}\n/\u{1f600}", "\u{fffd}x", "a\u{fffd}b"];
        assert_eq!(document, Json::Array(expected.map(Json::string).to_vec()));
    }

    #[test]
    fn a_document_is_printed_with_four_spaces_a_level_and_gos_escapes() {
        let document = Json::object([
            ("a", Json::string("<b> & \"c\"\u{1}")),
            ("empty", Json::Object(Vec::new())),
            ("list", Json::Array(vec![Json::number(1), Json::Null])),
        ]);

        let expected = "{\n    \"a\": \"\\u003cb\\u003e \\u0026 \\\"c\\\"\\u0001\",\n    \"empty\": {},\n    \
                        \"list\": [\n        1,\n        null\n    ]\n}";
        assert_eq!(document.pretty(), expected);
        assert_eq!(Json::parse(document.compact().as_bytes()).unwrap(), document);
    }

    #[test]
    fn an_endless_nest_is_refused_before_the_stack_ends() {
        assert_eq!(Json::parse(&b"[".repeat(1_000_000)).unwrap_err(), "exceeded max depth");
    }

    proptest! {
        #[test]
        fn no_input_makes_the_reader_panic(text: Vec<u8>) {
            let _ = Json::parse(&text);
        }

        #[test]
        fn what_is_printed_is_read_back(text: String) {
            let value = Json::object([("key", Json::String(text))]);
            prop_assert_eq!(Json::parse(value.pretty().as_bytes()).unwrap(), value);
        }
    }
}
