//! Which chunkservers a mount rather reads from: `mfspreflabels`. Spec 20, 3.1; Spec 72, 1.1.
//!
//! Groups in order of preference, each an expression over labels. A server is as good as the first group that fits it.

/// Groups at most, as in MooseFS.
const GROUPS_MAX: usize = 9;
/// Brackets in brackets at most.
const DEPTH_MAX: usize = 32;

/// A parsed list of groups; the default has none, and all servers are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preference {
    groups: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    /// `*`: any server.
    Any,
    /// Bit n is label 'A' + n.
    Label(u8),
    And(Vec<Expression>),
    Or(Vec<Expression>),
}

impl Preference {
    /// `A;BC;(D+E)F`: a server with A, else one with B and C, else one with F and D or E. Between groups `,` is as good
    /// as `;`, for "and" letters stand side by side or with `*` or `&` between them, "or" is `+` or `|`; `*` alone is any
    /// server, a digit says so many groups. Blanks and the case of letters do not count. Errors: it is nothing of that.
    pub fn parse(text: &str) -> Option<Preference> {
        let symbols: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let mut input = Parser { symbols: &symbols };
        let mut groups = Vec::new();
        loop {
            let repeat = match input.peek() {
                Some(digit @ b'1'..=b'9') => {
                    input.skip();
                    usize::from(digit - b'0')
                }
                _ => 1,
            };
            let counted_alone = repeat > 1 || symbols.first().is_some_and(u8::is_ascii_digit);
            let group = match input.peek() {
                Some(b'*') => {
                    input.skip();
                    Expression::Any
                }
                None | Some(b';' | b',') if counted_alone => Expression::Any,
                _ => input.alternatives(0)?,
            };
            groups.extend(std::iter::repeat_n(group, repeat));
            match input.next() {
                None => break,
                Some(b';' | b',') => {}
                Some(_) => return None,
            }
        }
        (groups.len() <= GROUPS_MAX).then_some(Preference { groups })
    }

    /// 0 for servers of the first group, the number of groups for those that fit none.
    pub(crate) fn rank(&self, labels: u32) -> usize {
        self.groups.iter().position(|group| group.fits(labels)).unwrap_or(self.groups.len())
    }
}

impl Expression {
    fn fits(&self, labels: u32) -> bool {
        match self {
            Expression::Any => true,
            Expression::Label(bit) => labels >> bit & 1 == 1,
            Expression::And(all) => all.iter().all(|one| one.fits(labels)),
            Expression::Or(any) => any.iter().any(|one| one.fits(labels)),
        }
    }
}

struct Parser<'a> {
    symbols: &'a [u8],
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.symbols.first().copied()
    }

    fn skip(&mut self) {
        self.symbols = self.symbols.get(1..).unwrap_or_default();
    }

    fn next(&mut self) -> Option<u8> {
        let symbol = self.peek();
        self.skip();
        symbol
    }

    /// An operator, written once or twice.
    fn operator(&mut self, signs: &[u8]) -> bool {
        let Some(sign) = self.peek().filter(|sign| signs.contains(sign)) else { return false };
        self.skip();
        if matches!(sign, b'|' | b'&') && self.peek() == Some(sign) {
            self.skip();
        }
        true
    }

    fn alternatives(&mut self, depth: usize) -> Option<Expression> {
        let mut any = vec![self.all_of(depth)?];
        while self.operator(b"+|") {
            any.push(self.all_of(depth)?);
        }
        Some(Expression::Or(any))
    }

    fn all_of(&mut self, depth: usize) -> Option<Expression> {
        let mut all = vec![self.one(depth)?];
        while self.operator(b"*&") || matches!(self.peek(), Some(b'(' | b'[' | b'a'..=b'z' | b'A'..=b'Z')) {
            all.push(self.one(depth)?);
        }
        Some(Expression::And(all))
    }

    fn one(&mut self, depth: usize) -> Option<Expression> {
        match self.next()? {
            letter @ (b'a'..=b'z' | b'A'..=b'Z') => Some(Expression::Label(letter.to_ascii_uppercase() - b'A')),
            open @ (b'(' | b'[') if depth < DEPTH_MAX => {
                let inside = self.alternatives(depth + 1)?;
                let close = if open == b'(' { b')' } else { b']' };
                (self.next() == Some(close)).then_some(inside)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> u32 {
        text.bytes().map(|letter| 1 << (letter - b'A')).sum()
    }

    #[test]
    fn a_server_is_as_good_as_the_first_group_that_fits() {
        let check = |text: &str, expected: [usize; 5]| {
            let preference = Preference::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(["", "A", "B", "AB", "BC"].map(|server| preference.rank(labels(server))), expected, "{text}");
        };
        check("A", [1, 0, 1, 0, 1]);
        check("b ; a", [2, 1, 0, 0, 0]);
        check("B,A", [2, 1, 0, 0, 0]);
        check("AB", [1, 1, 1, 0, 1]);
        check("A&B", [1, 1, 1, 0, 1]);
        check("A*B;B", [2, 2, 1, 0, 1]);
        check("A+B", [1, 0, 0, 0, 0]);
        check("(A+C)B", [1, 1, 1, 0, 0]);
        check("B[A||C];*", [1, 1, 1, 0, 0]);
        check("BA+BC", [1, 1, 1, 0, 0]);
        check("1", [0, 0, 0, 0, 0]);
        check("2A;B", [3, 0, 2, 0, 2]);
        assert_eq!(Preference::default().rank(labels("A")), 0);
    }

    #[test]
    fn what_a_stock_mount_refuses_is_refused() {
        for text in ["", ";", "A;", ";A", "A;;B", "A+", "+A", "(A", "A)", "(A]", "()", "A;B;C;D;E;F;G;H;I;J", "0", "!"]
        {
            assert_eq!(Preference::parse(text), None, "{text}");
        }
        assert_eq!(Preference::parse(&"(".repeat(100_000)), None);
        assert!(Preference::parse("A;B;C;D;E;F;G;H;I").is_some());
    }
}
