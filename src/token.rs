//! Bearer tokens and their digests. Logs, maps and the store contain only digests.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize, Serializer};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// A bearer token, or the key of a client. `Debug` and `Serialize` write `***`; there is no
/// `Display`.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Token(Arc<str>);

impl Token {
    /// Parses a token: one or more visible ASCII characters (`field-content` of RFC 9110 section
    /// 5.5 without whitespace).
    pub fn parse(token: &str) -> Option<Self> {
        Self::is_valid(token).then(|| Self(token.into()))
    }

    /// Whether [`Token::parse`] accepts the text.
    pub fn is_valid(token: &str) -> bool {
        // A loop without an early exit can be vectorised.
        token.bytes().fold(!token.is_empty(), |is_valid, byte| is_valid & byte.is_ascii_graphic())
    }

    /// Returns the secret. Use it only for the `authorization` header of an upstream call.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares with another token in a time that depends only on the lengths.
    pub fn matches(&self, other: &str) -> bool {
        self.0.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

impl TryFrom<String> for Token {
    type Error = &'static str;

    fn try_from(token: String) -> Result<Self, Self::Error> {
        Self::parse(&token).ok_or("not a token")
    }
}

/// Constant in time, like [`Token::matches`].
impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// The key of all digests of one store. Generated when the store is first opened, and stored in it.
#[derive(Clone)]
pub struct DigestKey(Hmac<Sha256>);

impl DigestKey {
    /// Creates a key from 32 random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(bytes).expect("HMAC accepts a key of any length"))
    }

    /// Returns the HMAC-SHA-256 of a token.
    pub fn digest(&self, token: &Token) -> Digest {
        self.digest_bytes(token.0.as_bytes())
    }

    /// Returns the digest that stands for the whole team in `shared` mode. It differs from the
    /// digest of every token, because a token cannot contain a NUL.
    pub fn team(&self) -> Digest {
        self.digest_bytes(b"\0team")
    }

    fn digest_bytes(&self, bytes: &[u8]) -> Digest {
        let mut mac = self.0.clone();
        mac.update(bytes);
        Digest(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// HMAC-SHA-256 of a token. Displayed as its first eight hexadecimal digits, serialized with all of
/// them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Hashes a part only. Clients cannot choose it without the key, and equality compares all bytes.
impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0[..8].hash(state);
    }
}

impl Digest {
    /// Returns all bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Parses the form of [`Digest::to_hex`], in any letter case.
    pub fn parse_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// Returns all 64 hexadecimal digits.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_not_printed() {
        let token = Token::parse("secret-canary").unwrap();
        assert_eq!(format!("{token:?}"), "***");
    }

    #[test]
    fn token_with_spaces_or_non_ascii_is_refused() {
        for bad in ["", "a b", "a\tb", "ä", "a\n"] {
            assert!(Token::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn digests_depend_on_the_key_and_the_token() {
        let (one, two) = (DigestKey::new(&[1; 32]), DigestKey::new(&[2; 32]));
        let (a, b) = (Token::parse("a").unwrap(), Token::parse("b").unwrap());
        assert_eq!(one.digest(&a), one.digest(&a));
        assert_ne!(one.digest(&a), one.digest(&b));
        assert_ne!(one.digest(&a), two.digest(&a));
        assert_eq!(one.digest(&a).to_string().len(), 8);
    }

    #[test]
    fn digest_is_parsed_only_from_all_its_digits() {
        let digest = DigestKey::new(&[1; 32]).digest(&Token::parse("a").unwrap());
        let hex = digest.to_hex();
        assert_eq!(Digest::parse_hex(&hex), Some(digest));
        assert_eq!(Digest::parse_hex(&hex.to_uppercase()), Some(digest));
        assert!(hex.starts_with(&digest.to_string()));
        for bad in
            ["", &hex[..8], &hex[..63], &format!("{hex}0"), &hex.replacen(&hex[..1], "g", 1), &"é".repeat(32)]
        {
            assert_eq!(Digest::parse_hex(bad), None, "{bad}");
        }
    }
}
