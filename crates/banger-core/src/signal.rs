//! Signals by name: `SIGQUIT`, `quit`, `3`, `SIGRTMIN+3`.
//!
//! The numbers are those of Linux on x86-64, where every guest runs.

/// First real-time signal as programs count them; the C library keeps two below it for itself.
const RTMIN: i32 = 34;
/// Last signal of all.
const RTMAX: i32 = 64;

/// Every signal that has a name, by number.
const NAMES: [(&str, i32); 36] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", RTMIN),
    ("RTMAX", RTMAX),
];

/// A text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a signal: it is neither a name such as SIGQUIT nor a number from 1 to 64")]
pub struct UnknownSignal {
    /// The text.
    pub text: String,
}

/// The number of a signal that is given by its name, with or without `SIG` and in any case, or by
/// its number.
///
/// # Errors
/// [`UnknownSignal`].
pub fn parse(text: &str) -> Result<i32, UnknownSignal> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    by_number(text)
        .or_else(|| by_name(name))
        .or_else(|| real_time(name))
        .ok_or_else(|| UnknownSignal { text: text.to_owned() })
}

fn by_number(text: &str) -> Option<i32> {
    digits(text).filter(|number| (1..=RTMAX).contains(number))
}

fn by_name(name: &str) -> Option<i32> {
    NAMES.into_iter().find_map(|(known, number)| (known == name).then_some(number))
}

/// `RTMIN+3`, `RTMAX-1`.
fn real_time(name: &str) -> Option<i32> {
    let number = match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
        (Some(above), _) => RTMIN.checked_add(digits(above)?)?,
        (_, Some(below)) => RTMAX.checked_sub(digits(below)?)?,
        _ => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// A number without a sign.
fn digits(text: &str) -> Option<i32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let cases = [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("sigterm", 15),
            ("15", 15),
            ("SIGQUIT", 3),
            ("WINCH", 28),
            ("64", 64),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMIN+30", 64),
            ("rtmax-14", 50),
            ("SIGRTMAX", 64),
        ];
        for (text, number) in cases {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let cases = [
            "",
            "SIG",
            "0",
            "65",
            "-1",
            "+15",
            " 15",
            "TERMINATE",
            "SIGSIGTERM",
            "RTMIN+",
            "RTMIN+31",
            "RTMIN-1",
            "RTMAX-31",
            "RTMIN++3",
            "99999999999",
            "TERM\n",
            "sïgterm",
        ];
        for text in cases {
            assert_eq!(parse(text), Err(UnknownSignal { text: text.to_owned() }), "{text}");
        }
    }
}
