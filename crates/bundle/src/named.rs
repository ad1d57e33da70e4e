//! Enums whose values have names in settings and files.

/// Implements `ALL`, `name` and [`Display`](std::fmt::Display) for an enum from a table of names, and, if the [`Field`](crate::Field)
/// and a noun are given, [`FromStr`](std::str::FromStr). Names after `|` are aliases that are only parsed.
///
/// ```
/// /// The colour of a screen.
/// #[derive(Debug, Clone, Copy, PartialEq)]
/// enum Screen {
///     Green,
///     Blue,
/// }
///
/// bundle::named!(Screen, bundle::Field::KeyColour, "key colour", "green" => Green, "blue" => Blue);
///
/// assert_eq!("blue".parse::<Screen>().unwrap(), Screen::Blue);
/// assert_eq!(Screen::ALL.map(Screen::name), ["green", "blue"]);
/// assert_eq!(
///     "red".parse::<Screen>().unwrap_err().to_string(),
///     "key_colour cannot be `red`: unknown key colour; expected one of green, blue (use one of these)"
/// );
/// ```
#[macro_export]
macro_rules! named {
    ($kind:ident, $($name:literal => $variant:ident),+ $(,)?) => {
        impl $kind {
            /// Every value, in display order.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// Returns the name used in settings and files.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl ::std::fmt::Display for $kind {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
    (
        $kind:ident, $field:expr, $noun:literal,
        $first:literal $(| $first_alias:literal)* => $first_variant:ident
        $(, $name:literal $(| $alias:literal)* => $variant:ident)* $(,)?
    ) => {
        $crate::named!($kind, $first => $first_variant $(, $name => $variant)*);

        impl ::std::str::FromStr for $kind {
            type Err = $crate::Error;

            fn from_str(text: &str) -> ::std::result::Result<Self, $crate::Error> {
                match text {
                    $first $(| $first_alias)* => Ok(Self::$first_variant),
                    $($name $(| $alias)* => Ok(Self::$variant),)*
                    _ => Err($crate::Error::value(
                        $field,
                        ::std::format!("`{text}`"),
                        ::std::concat!(
                            "unknown ", $noun, "; expected one of ", $first $(, ", ", $first_alias)*
                            $(, ", ", $name $(, ", ", $alias)*)*
                        ),
                        "use one of these",
                    )),
                }
            }
        }
    };
}
