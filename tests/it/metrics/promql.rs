//! A parser of PromQL expressions that finds metrics and labels.

use std::collections::BTreeSet;

/// Metrics and labels of an expression.
#[derive(Debug, Default)]
pub struct Mentions {
    /// Metrics, each with its matchers.
    pub selectors: Vec<Selector>,
    /// Labels after `by`, `on` and the like.
    pub grouped_by: BTreeSet<String>,
}

#[derive(Debug)]
pub struct Selector {
    pub name: String,
    /// Label, operator, value.
    pub matchers: Vec<(String, String, String)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

/// Parses an expression.
pub fn read(expression: &str) -> Mentions {
    let tokens = tokens(expression);
    let mut mentions = Mentions::default();
    let mut at = 0;
    while at < tokens.len() {
        let next = tokens.get(at + 1);
        match &tokens[at] {
            Token::Word(word)
                if ["by", "without", "on", "ignoring", "group_left", "group_right"]
                    .contains(&word.as_str()) =>
            {
                if next == Some(&Token::Sign('(')) {
                    let end = position(&tokens, at, ')');
                    let labels = tokens[at + 2..end].iter();
                    mentions.grouped_by.extend(labels.filter_map(|token| match token {
                        Token::Word(label) => Some(label.clone()),
                        _ => None,
                    }));
                    at = end;
                }
            }
            Token::Word(word) if ["and", "or", "unless", "bool"].contains(&word.as_str()) => {}
            // A function.
            Token::Word(_) if matches!(next, Some(Token::Sign('('))) => {}
            // An aggregation with its grouping in front.
            Token::Word(_) if matches!(next, Some(Token::Word(word)) if word == "by" || word == "without") => {
            }
            Token::Word(name) => {
                let mut selector = Selector { name: name.clone(), matchers: Vec::new() };
                if next == Some(&Token::Sign('{')) {
                    let end = position(&tokens, at, '}');
                    for matcher in tokens[at + 2..end].split(|token| *token == Token::Sign(',')) {
                        let [Token::Word(label), operator @ .., Token::Text(value)] = matcher else {
                            panic!("no matcher: {matcher:?} in {expression}");
                        };
                        let operator = operator.iter().map(|token| match token {
                            Token::Sign(sign) => *sign,
                            other => panic!("{other:?} in {expression}"),
                        });
                        selector.matchers.push((label.clone(), operator.collect(), value.clone()));
                    }
                    at = end;
                }
                mentions.selectors.push(selector);
            }
            Token::Text(_) | Token::Sign(_) => {}
        }
        at += 1;
    }
    assert!(!mentions.selectors.is_empty(), "no metric in {expression}");
    mentions
}

fn position(tokens: &[Token], from: usize, sign: char) -> usize {
    let found = tokens[from..].iter().position(|token| *token == Token::Sign(sign));
    from + found.unwrap_or_else(|| panic!("no {sign} in {tokens:?}"))
}

/// Words, strings and signs, without numbers and ranges in square brackets.
fn tokens(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expression.chars().peekable();
    while let Some(first) = rest.next() {
        match first {
            '"' => tokens.push(Token::Text(rest.by_ref().take_while(|next| *next != '"').collect())),
            '[' => while rest.next().is_some_and(|next| next != ']') {},
            'a'..='z' | 'A'..='Z' | '_' | '0'..='9' => {
                let mut word = String::from(first);
                while let Some(next) =
                    rest.next_if(|next| next.is_ascii_alphanumeric() || "_:.".contains(*next))
                {
                    word.push(next);
                }
                if !first.is_ascii_digit() {
                    tokens.push(Token::Word(word));
                }
            }
            sign if sign.is_whitespace() => {}
            sign => tokens.push(Token::Sign(sign)),
        }
    }
    tokens
}

#[test]
fn parser_finds_metrics_and_labels_of_an_expression() {
    let mentions = read(
        "histogram_quantile(0.9, sum by (le, job) (rate(a_bucket{x=\"y\", z!~\"1|2\"}[$__rate_interval]))) > 1.5e3 \
         and on (instance) b unless c / 1024",
    );
    let names: Vec<&str> = mentions.selectors.iter().map(|selector| selector.name.as_str()).collect();
    assert_eq!(names, ["a_bucket", "b", "c"]);
    assert_eq!(mentions.selectors[0].matchers[1], ("z".into(), "!~".into(), "1|2".into()));
    assert_eq!(mentions.grouped_by.iter().map(String::as_str).collect::<Vec<_>>(), ["instance", "job", "le"]);
}
