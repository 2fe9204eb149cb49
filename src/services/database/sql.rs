//! What can be told of a statement without a database: that there is one, what it begins with, and which words are in it.
//!
//! This is not what keeps a database from being written to: sessions read only, and the servers refuse several statements at once. It
//! refuses early and in words what would get around that: statements that end the transaction or change the session.
//!
//! Lexical rules are those of the servers' manuals: quotes, comments (also MySQL's that are executed), dollar quotes.

use crate::services::settings::database::Driver;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// In lower case; not a quoted name.
    Word(String),
    /// Where it stands.
    Semicolon(usize),
    Other,
}

/// The statement without what follows it, or why it is not run, in words for a model.
pub fn accepted(sql: &str, driver: Driver, read_only: bool) -> Result<&str, String> {
    let tokens = tokens(sql, driver);
    let end = tokens.iter().position(|token| matches!(token, Token::Semicolon(_)));
    let (statement, rest) = tokens.split_at(end.unwrap_or(tokens.len()));
    if rest.iter().any(|token| !matches!(token, Token::Semicolon(_))) {
        return Err("only one statement is run at a time; call the tool once for each".to_owned());
    }
    let first = statement.iter().find_map(|token| match token {
        Token::Word(word) => Some(word.as_str()),
        _ => None,
    });
    let Some(first) = first else { return Err("there is no statement in `sql`".to_owned()) };
    if read_only {
        let allowed = reading(driver);
        if !allowed.contains(&first) {
            let allowed = allowed.join(", ").to_uppercase();
            return Err(format!(
                "this database is for reading: a statement begins with {allowed}, not with {}",
                first.to_uppercase()
            ));
        }
        let writes_file = |token: &Token| matches!(token, Token::Word(word) if word == "outfile" || word == "dumpfile");
        if driver == Driver::Mysql && statement.iter().any(writes_file) {
            return Err("this database is for reading: no file is written".to_owned());
        }
    } else if refused(driver).contains(&first) {
        return Err(format!(
            "{} is not run here: each call is a transaction of its own, on a connection that others use as well",
            first.to_uppercase()
        ));
    }
    match rest.first() {
        Some(Token::Semicolon(at)) => Ok(&sql[..*at]),
        _ => Ok(sql),
    }
}

fn reading(driver: Driver) -> &'static [&'static str] {
    match driver {
        Driver::Mysql => &["select", "with", "values", "table", "show", "describe", "desc", "explain"],
        Driver::Postgres => &["select", "with", "values", "table", "show", "explain"],
        Driver::Sqlite => &["select", "with", "values", "explain"],
    }
}

/// What would outlast the call, or reaches beyond the database.
fn refused(driver: Driver) -> &'static [&'static str] {
    match driver {
        Driver::Mysql => &[
            "begin",
            "start",
            "commit",
            "rollback",
            "savepoint",
            "release",
            "xa",
            "use",
            "set",
            "load",
            "lock",
            "handler",
        ],
        Driver::Postgres => &[
            "begin",
            "start",
            "commit",
            "end",
            "rollback",
            "abort",
            "savepoint",
            "release",
            "prepare",
            "copy",
            "listen",
            "set",
            "reset",
            "discard",
        ],
        Driver::Sqlite => {
            &["begin", "commit", "end", "rollback", "savepoint", "release", "attach", "detach", "vacuum", "pragma"]
        }
    }
}

fn tokens(sql: &str, driver: Driver) -> Vec<Token> {
    let mut lexer = Lexer { bytes: sql.as_bytes(), at: 0, driver };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next() {
        tokens.push(token);
    }
    tokens
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    driver: Driver,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn next(&mut self) -> Option<Token> {
        self.skip_blank();
        let (start, byte) = (self.at, *self.bytes.get(self.at)?);
        self.at += 1;
        Some(match byte {
            b';' => Token::Semicolon(start),
            b'\'' => self.quoted(b'\'', self.driver == Driver::Mysql),
            b'"' => self.quoted(b'"', self.driver == Driver::Mysql),
            b'`' if self.driver != Driver::Postgres => self.quoted(b'`', false),
            b'[' if self.driver == Driver::Sqlite => self.quoted(b']', false),
            b'$' if self.driver == Driver::Postgres => self.dollar_quoted(start),
            byte if is_word(byte) => {
                while is_word(self.peek(0)) || (self.peek(0) == b'$' && self.driver != Driver::Sqlite) {
                    self.at += 1;
                }
                let word = String::from_utf8_lossy(&self.bytes[start..self.at]).to_ascii_lowercase();
                // E'...' of PostgreSQL: here a backslash takes the next sign's meaning away.
                if self.driver == Driver::Postgres && word == "e" && self.peek(0) == b'\'' {
                    self.at += 1;
                    return Some(self.quoted(b'\'', true));
                }
                Token::Word(word)
            }
            _ => Token::Other,
        })
    }

    /// White space and comments, but not those that MySQL executes.
    fn skip_blank(&mut self) {
        let mysql = self.driver == Driver::Mysql;
        loop {
            match (self.peek(0), self.peek(1)) {
                (byte, _) if byte.is_ascii_whitespace() => self.at += 1,
                (b'-', b'-') if !mysql || self.peek(2) <= b' ' => self.skip_line(),
                (b'#', _) if mysql => self.skip_line(),
                (b'/', b'*') if mysql && (self.peek(2) == b'!' || (self.peek(2) == b'M' && self.peek(3) == b'!')) => {
                    self.at += if self.peek(2) == b'!' { 3 } else { 4 };
                    while self.peek(0).is_ascii_digit() {
                        self.at += 1;
                    }
                }
                (b'*', b'/') if mysql => self.at += 2,
                (b'/', b'*') => self.skip_comment(),
                _ => return,
            }
        }
    }

    fn skip_line(&mut self) {
        while !matches!(self.peek(0), b'\n' | 0) || (self.peek(0) == 0 && self.at < self.bytes.len()) {
            self.at += 1;
        }
    }

    fn skip_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.bytes.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') if depth == 0 || self.driver == Driver::Postgres => {
                    (depth, self.at) = (depth + 1, self.at + 2)
                }
                (b'*', b'/') => (depth, self.at) = (depth - 1, self.at + 2),
                _ => self.at += 1,
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// After the opening quote. The quote itself is written twice.
    fn quoted(&mut self, close: u8, escapes: bool) -> Token {
        while self.at < self.bytes.len() {
            let byte = self.peek(0);
            self.at += 1;
            if byte == b'\\' && escapes {
                self.at += 1;
            } else if byte == close {
                if self.peek(0) != close || close == b']' {
                    break;
                }
                self.at += 1;
            }
        }
        Token::Other
    }

    /// `$tag$...$tag$`; a `$1` is a parameter.
    fn dollar_quoted(&mut self, start: usize) -> Token {
        let tag = self.bytes[self.at..].iter().take_while(|byte| is_word(**byte)).count();
        if self.peek(tag) != b'$' || self.peek(0).is_ascii_digit() {
            return Token::Other;
        }
        self.at += tag + 1;
        let quote = &self.bytes[start..self.at];
        let found = memchr::memmem::find(&self.bytes[self.at..], quote);
        self.at = found.map_or(self.bytes.len(), |found| self.at + found + quote.len());
        Token::Other
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// A name as it stands in a statement.
pub fn identifier(name: &str, driver: Driver) -> String {
    match driver {
        Driver::Mysql => format!("`{}`", name.replace('`', "``")),
        Driver::Postgres | Driver::Sqlite => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_statement_that_reads_is_taken_whatever_is_quoted_in_it() {
        for (driver, sql) in [
            (Driver::Postgres, "-- why; not\n select ';' as a, $$ ; drop $$, $x$;$x$ /* ; /* ; */ ; */ "),
            (Driver::Postgres, "SELECT E'\\';', $1::text; -- done;"),
            (Driver::Postgres, "select '\\'"),
            (Driver::Mysql, "select 'it''s; \\'; fine', \"a;b\", `c;d` # ; e\n"),
            (Driver::Mysql, "(select 1 -- ;\n)"),
            (Driver::Sqlite, "with [a;b] as (select 1) select * from \"a;b\";;"),
        ] {
            assert!(accepted(sql, driver, true).is_ok(), "{sql}: {:?}", accepted(sql, driver, true));
        }
        assert_eq!(accepted("select 1; -- end", Driver::Postgres, true), Ok("select 1"));
    }

    #[test]
    fn what_writes_or_is_two_statements_is_refused_in_words() {
        for (driver, sql, words) in [
            (Driver::Postgres, "select 1; select 2", "only one statement"),
            (Driver::Postgres, "select '\\'; drop table a --'", "only one statement"),
            (Driver::Mysql, "select 1 --1; select 2", "only one statement"),
            (Driver::Mysql, "/*!50000 delete */ from a", "not with DELETE"),
            (Driver::Mysql, "select 1 /*! into outfile '/tmp/x' */", "no file is written"),
            (Driver::Mysql, "set session transaction read write", "not with SET"),
            (Driver::Postgres, "commit", "not with COMMIT"),
            (Driver::Sqlite, "attach 'x' as y", "not with ATTACH"),
            (Driver::Sqlite, " -- nothing", "there is no statement"),
            (Driver::Sqlite, ";", "there is no statement"),
        ] {
            let said = accepted(sql, driver, true).unwrap_err();
            assert!(said.contains(words), "{sql}: {said}");
        }
        assert!(accepted("delete from a", Driver::Mysql, false).is_ok());
        assert!(accepted("attach 'x' as y", Driver::Sqlite, false).unwrap_err().contains("ATTACH is not run here"));
    }

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        assert_eq!(identifier("a`; drop", Driver::Mysql), "`a``; drop`");
        assert_eq!(identifier("a\"b", Driver::Postgres), "\"a\"\"b\"");
    }
}
