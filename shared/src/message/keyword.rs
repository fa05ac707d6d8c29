//! The keywords of the wire: enums with a fixed text for each value.

use std::fmt;

/// Defines an enum with a keyword for each variant.
macro_rules! keywords {
    (
        $(#[$doc:meta])* $name:ident {
            $($(#[$variant_doc:meta])* $variant:ident = $keyword:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// Every value, in the order of the definition.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The keyword, as on the wire and in records.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $keyword,)* }
            }
        }

        impl $crate::json::ToJson for $name {
            fn write_json(&self, out: &mut Vec<u8>) {
                $crate::json::write_plain(out, self.as_str());
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::message::keyword::UnknownKeyword;

            fn from_str(keyword: &str) -> Result<Self, $crate::message::keyword::UnknownKeyword> {
                let found = Self::ALL.iter().copied().find(|value| value.as_str() == keyword);
                found.ok_or($crate::message::keyword::UnknownKeyword)
            }
        }
    };
}
pub(crate) use keywords;

/// The text is not a keyword of the enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnknownKeyword;

impl fmt::Display for UnknownKeyword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown keyword")
    }
}

impl std::error::Error for UnknownKeyword {}
