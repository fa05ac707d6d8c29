//! Enums with a fixed name for each value, as records and files have it.

/// Defines the enum, `as_str` and `FromStr`.
macro_rules! keywords {
    (
        $(#[$doc:meta])* $enum:ident {
            $($(#[$variant_doc:meta])* $variant:ident = $keyword:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $enum { $($(#[$variant_doc])* $variant,)* }

        impl $enum {
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $keyword,)* }
            }
        }

        impl std::str::FromStr for $enum {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($keyword => Ok(Self::$variant),)* _ => Err(()) }
            }
        }
    };
}
pub(crate) use keywords;
