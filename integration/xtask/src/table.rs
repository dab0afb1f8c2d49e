//! How tables look here.

use comfy_table::{ContentArrangement, Row, Table, presets};

/// An empty table whose lines are as long as its words: it also goes into logs, which have no width.
pub(crate) fn new(header: impl Into<Row>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}
