//! Cuts a file into documents before anything is parsed, so that an unchanged document is known by its text alone and a
//! broken one spoils no other.

use serde_json::value::RawValue;

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Document<'a> {
    pub(crate) text: &'a str,
    /// The line of the file that it begins on, from 1.
    pub(crate) line: usize,
}

/// The documents of a YAML stream: what stands between lines that begin with `---` (or end with `...`). YAML forbids such
/// lines inside of any scalar (YAML 1.2.2 §9.1.2), so no look at the content is needed. Empty ones are left out.
pub(crate) fn yaml(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut start = 0;
    let mut first_line = 1;
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line, "---") {
            push(&mut documents, text, start..at, first_line);
            // `--- !tag`, `--- {a: b}` and `--- # why` are content, too.
            start = at + 3;
            first_line = number + 1;
        } else if is_marker(line, "...") {
            push(&mut documents, text, start..at, first_line);
            start = at + line.len();
            first_line = number + 2;
        }
        at += line.len();
    }
    push(&mut documents, text, start..at, first_line);
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn push<'a>(documents: &mut Vec<Document<'a>>, text: &'a str, range: std::ops::Range<usize>, line: usize) {
    let text = text.get(range).unwrap_or_default();
    let content = text.lines().any(|line| {
        let line = line.trim();
        // Directives (`%YAML 1.2`) stand before a document and are none.
        !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
    });
    if content {
        documents.push(Document { text, line });
    }
}

/// The documents of a JSON file: one value or several in a row; the items of a list count as documents, so that a
/// change of one item costs that item. The error tells of the place where it stops being JSON.
pub(crate) fn json(text: &str) -> (Vec<Document<'_>>, Option<String>) {
    #[derive(serde::Deserialize)]
    struct Shell<'a> {
        kind: Option<String>,
        #[serde(borrow)]
        items: Option<Vec<&'a RawValue>>,
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = Lines { text, at: 0, line: 1 };
    let mut documents = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        let value = match value {
            Ok(value) => value.get(),
            Err(error) => return (documents, Some(error.to_string())),
        };
        match serde_json::from_str::<Shell<'_>>(value) {
            // Only `List` itself: the items of a typed list do not carry their kind.
            Ok(Shell { kind: Some(kind), items: Some(items) }) if kind == "List" => {
                documents.extend(items.iter().map(|item| Document { text: item.get(), line: lines.of(item.get()) }));
            }
            _ => documents.push(Document { text: value, line: lines.of(value) }),
        }
    }
    (documents, None)
}

/// Counts lines up to places that only move forward.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl Lines<'_> {
    fn of(&mut self, part: &str) -> usize {
        let to = (part.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let between = self.text.as_bytes().get(self.at..to).unwrap_or_default();
        self.line += between.iter().filter(|b| **b == b'\n').count();
        self.at = to.max(self.at);
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts<'a>(documents: &[Document<'a>]) -> Vec<(&'a str, usize)> {
        documents.iter().map(|d| (d.text.trim(), d.line)).collect()
    }

    #[test]
    fn yaml_documents_are_cut_at_their_markers() {
        for (text, want) in [
            ("", vec![]),
            ("# only a comment\n---\n\n---\n# another\n", vec![]),
            ("a: 1", vec![("a: 1", 1)]),
            ("a: 1\n---\nb: 2\n", vec![("a: 1", 1), ("b: 2", 2)]),
            ("---\na: 1\n---\nb: 2", vec![("a: 1", 1), ("b: 2", 3)]),
            ("%YAML 1.2\n---\na: 1\n...\n# end\n---\nb: 2\n", vec![("a: 1", 2), ("b: 2", 6)]),
            ("--- {a: 1}\n--- # why\nb: 2\n", vec![("{a: 1}", 1), ("# why\nb: 2", 2)]),
            ("a: 1\r\n---\r\nb: 2\r\n", vec![("a: 1", 1), ("b: 2", 2)]),
            ("a: |\n  ---\n  text\n----\n", vec![("a: |\n  ---\n  text\n----", 1)]),
            ("\u{feff}---\na: 1\n", vec![("a: 1", 1)]),
            ("---", vec![]),
        ] {
            assert_eq!(texts(&yaml(text)), want, "{text:?}");
        }
    }

    #[test]
    fn json_files_hold_values_in_a_row_and_lists_of_items() {
        let (documents, error) =
            json("{\"kind\":\"Service\"}\n\n{\"kind\":\"List\",\n\"items\":[\n{\"a\":1},\n{\"b\":2}]}\n{\"c\"");
        assert_eq!(texts(&documents), vec![("{\"kind\":\"Service\"}", 1), ("{\"a\":1}", 5), ("{\"b\":2}", 6)]);
        assert!(error.unwrap().contains("EOF"), "what follows is no JSON");
        assert_eq!(json(" \n").0, vec![]);
        assert!(json(" \n").1.is_none());
    }
}
