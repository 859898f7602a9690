//! Secrets: a token is shown to nobody. Logs, keys and the store use its keyed digest.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// A bearer token or a client's key. `Debug` prints stars and there is no `Display`.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// A token of one or more visible ASCII characters (RFC 9110 5.5 field content without white space).
    pub fn parse(token: &str) -> Option<Self> {
        Self::is_valid(token).then(|| Self(token.into()))
    }

    /// Whether [`Token::parse`] takes this.
    pub fn is_valid(token: &str) -> bool {
        // All of them, without a stop at the first: the compiler looks at many at a time.
        token.bytes().fold(!token.is_empty(), |is_valid, byte| is_valid & byte.is_ascii_graphic())
    }

    /// The secret itself, for the `authorization` field of an upstream call and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether both are the same, in a time that depends on their lengths alone.
    pub fn matches(&self, other: &str) -> bool {
        self.0.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

/// Constant in time, as [`Token::matches`].
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

/// The key of every digest of one store; made when the store is first opened and kept in it.
#[derive(Clone)]
pub struct DigestKey(Hmac<Sha256>);

impl DigestKey {
    /// A key from its 32 random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(Hmac::new_from_slice(bytes).expect("HMAC takes a key of any length"))
    }

    /// The HMAC-SHA-256 of a token.
    pub fn digest(&self, token: &Token) -> Digest {
        self.digest_bytes(token.0.as_bytes())
    }

    /// The digest under which the rights of the whole team stand in `shared` mode. No token has it: a token
    /// has no NUL.
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

/// A token's HMAC-SHA-256: what the store and every map know it by. Shown as its first eight hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A part is enough: nobody without the key can choose it, and maps compare the whole.
impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0[..8].hash(state);
    }
}

impl Digest {
    /// The whole digest, as the store keeps it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
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
    fn a_token_prints_stars() {
        let token = Token::parse("secret-canary").unwrap();
        assert_eq!(format!("{token:?}"), "***");
    }

    #[test]
    fn tokens_are_visible_ascii() {
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
}
