//! Where lines go: redrawn in place on a terminal, appended every few seconds when the output is a file or a pipe.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use terminal_size::{Height, Width, terminal_size};

/// Standard output.
pub(crate) struct Screen {
    terminal: bool,
    /// Lines of the last picture, which the next one replaces.
    drawn: usize,
    /// What stands below the table.
    footer: Vec<String>,
    footer_shown: bool,
}

impl Screen {
    pub(crate) fn new(footer: Vec<String>) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { terminal: io::stdout().is_terminal() && !dumb, drawn: 0, footer, footer_shown: false }
    }

    /// How often to draw.
    pub(crate) fn period(&self) -> Duration {
        if self.terminal { Duration::from_millis(500) } else { Duration::from_secs(5) }
    }

    /// Where there is no terminal, prints the footer at once: a reader of a log should not wait for it.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn open(&mut self) -> io::Result<()> {
        if self.terminal { Ok(()) } else { self.print_footer() }
    }

    fn print_footer(&mut self) -> io::Result<()> {
        self.footer_shown = true;
        print(&self.footer)?;
        print(&[String::new()])
    }

    /// Draws the table, above the footer where both fit. Otherwise the footer is printed once, first.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(crate) fn draw(&mut self, table: &[String]) -> io::Result<()> {
        let (width, height) = match terminal_size() {
            Some((Width(width), Height(height))) if self.terminal => (width.into(), height.into()),
            _ => (usize::MAX, 0),
        };
        // Commands that were cut off could not be copied.
        let narrow = self.footer.iter().any(|line| line.chars().count() > width);
        let both = !narrow && table.len() + 2 + self.footer.len() < height;
        if !both && !self.footer_shown {
            self.print_footer()?;
        }
        let mut lines = table.to_vec();
        lines.push(String::new());
        if both && !self.footer_shown {
            lines.extend_from_slice(&self.footer);
            lines.push(String::new());
        }
        if !self.terminal {
            return print(&lines);
        }
        let mut picture = String::new();
        if self.drawn > 0 {
            // Up to the first line of the last picture, and clear from there.
            picture.push_str(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        for line in &lines {
            // A wrapped line would break the count of lines to go up.
            let line: String = line.chars().take(width).collect();
            let heading = !line.starts_with(' ') && !line.is_empty();
            let (on, off) = if heading { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
            picture.push_str(&format!("{on}{line}{off}\n"));
        }
        self.drawn = lines.len();
        let mut out = io::stdout().lock();
        out.write_all(picture.as_bytes())?;
        out.flush()
    }
}

/// Prints lines as they are.
///
/// # Errors
/// When standard output is gone.
pub(crate) fn print(lines: &[String]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()
}
