//! The user and groups of a command: looks up `USER[:GROUP]` in the text of `passwd(5)` and
//! `group(5)`. No I/O and no name service.
//!
//! The rules are those of container runtimes, so that an image behaves here as it does there:
//! - Digits are a number, for users and groups, even if an entry has such a name. A number needs no
//!   entry; without one the group is 0 and the home directory is `/`.
//! - The first of several entries with the same name or number counts.
//! - Without a group, the user gets the group of its entry and every group that lists it as a
//!   member. With a group, it gets only that one.
//! - The list of groups always contains the primary group, as with `initgroups(3)`: a program that
//!   changes its primary group stays in the old one.
//!
//! As in the C library, invalid lines are skipped: comments, lines for a name service, lines with
//! missing fields or numbers out of range.

use std::fmt;

/// The number that means "unchanged" to system calls, so that no user or group can have it.
const ID_NONE: u32 = u32::MAX;

/// Home directory of a user without one.
const HOME_DEFAULT: &[u8] = b"/";

/// Group of a user without an entry.
const GID_DEFAULT: u32 = 0;

/// The identity of a process that runs as a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
    pub home: Vec<u8>,
}

/// Why the lookup failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountError {
    NoUserGiven,
    UserUnknown,
    GroupUnknown,
    /// No user or group can have this number.
    OutOfRange,
}

impl fmt::Display for AccountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoUserGiven => "no user before the group",
            Self::UserUnknown => "no such user in /etc/passwd",
            Self::GroupUnknown => "no such group in /etc/group",
            Self::OutOfRange => "a number that no user or group can have",
        })
    }
}

impl std::error::Error for AccountError {}

/// Looks up `wanted`, `USER[:GROUP]`, in the text of the two files.
pub fn resolve(wanted: &[u8], passwd: &[u8], group: &[u8]) -> Result<Account, AccountError> {
    let mut parts = wanted.splitn(2, |&byte| byte == b':');
    let user =
        Reference::read(parts.next().unwrap_or_default())?.ok_or(AccountError::NoUserGiven)?;
    let wanted_group = Reference::read(parts.next().unwrap_or_default())?;

    let entry = entries(passwd)
        .filter_map(User::read)
        .find(|entry| user.is(entry.name, entry.uid));
    let (uid, own_gid) = match (&entry, user) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Reference::Number(uid)) => (uid, GID_DEFAULT),
        (None, Reference::Name(_)) => return Err(AccountError::UserUnknown),
    };
    let name = entry.as_ref().map(|entry| entry.name);
    let (gid, others) = match (wanted_group, name) {
        (Some(wanted), _) => (find_group(wanted, group)?, Vec::new()),
        (None, Some(name)) => (own_gid, groups_with(name, group)),
        (None, None) => (own_gid, Vec::new()),
    };
    let mut groups = vec![gid];
    for other in others {
        if !groups.contains(&other) {
            groups.push(other);
        }
    }
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty());
    Ok(Account {
        uid,
        gid,
        groups,
        home: home.unwrap_or(HOME_DEFAULT).to_vec(),
    })
}

/// A user or a group, as it was given.
#[derive(Clone, Copy)]
enum Reference<'a> {
    Name(&'a [u8]),
    Number(u32),
}

impl<'a> Reference<'a> {
    /// `None` if the text is empty.
    fn read(text: &'a [u8]) -> Result<Option<Self>, AccountError> {
        if text.is_empty() {
            Ok(None)
        } else if text.iter().all(u8::is_ascii_digit) {
            let number = number(text).ok_or(AccountError::OutOfRange)?;
            Ok(Some(Self::Number(number)))
        } else {
            Ok(Some(Self::Name(text)))
        }
    }

    fn is(self, name: &[u8], number: u32) -> bool {
        match self {
            Self::Name(wanted) => wanted == name,
            Self::Number(wanted) => wanted == number,
        }
    }
}

/// The needed fields of a line of `/etc/passwd`.
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl<'a> User<'a> {
    fn read(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b':');
        let name = entry_name(fields.next()?)?;
        let _password = fields.next()?;
        let uid = number(fields.next()?)?;
        let gid = number(fields.next()?)?;
        let _comment = fields.next();
        let home = fields.next().unwrap_or_default();
        Some(Self {
            name,
            uid,
            gid,
            home,
        })
    }
}

/// The needed fields of a line of `/etc/group`.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> Group<'a> {
    fn read(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b':');
        let name = entry_name(fields.next()?)?;
        let _password = fields.next()?;
        let gid = number(fields.next()?)?;
        let members = fields.next().unwrap_or_default();
        Some(Self { name, gid, members })
    }

    fn has_member(&self, name: &[u8]) -> bool {
        self.members
            .split(|&byte| byte == b',')
            .any(|it| it == name)
    }
}

fn find_group(wanted: Reference<'_>, group: &[u8]) -> Result<u32, AccountError> {
    match wanted {
        Reference::Number(gid) => Ok(gid),
        Reference::Name(name) => entries(group)
            .filter_map(Group::read)
            .find(|entry| entry.name == name)
            .map(|entry| entry.gid)
            .ok_or(AccountError::GroupUnknown),
    }
}

fn groups_with(member: &[u8], group: &[u8]) -> Vec<u32> {
    entries(group)
        .filter_map(Group::read)
        .filter(|entry| entry.has_member(member))
        .map(|entry| entry.gid)
        .collect()
}

/// The lines, without `\n` and `\r\n`. Lines with NUL are skipped, because no program could receive
/// their fields.
fn entries(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.contains(&0))
}

/// The name, unless the line is a comment or for a name service.
fn entry_name(name: &[u8]) -> Option<&[u8]> {
    (!matches!(name.first(), None | Some(b'#' | b'+' | b'-'))).then_some(name)
}

/// A number of digits only that a user or group can have.
fn number(text: &[u8]) -> Option<u32> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(text).ok()?.parse().ok()?;
    (is_number && number != ID_NONE).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment:x:7:7::/:\n\
        +nis:x:8:8::/:\n\
        ann:x:1000:1000:Ann:/users/ann:/bin/sh\r\n\
        ann:x:1001:1001:second of the name:/elsewhere:\n\
        twin:x:1000:50:second of the number:/twin:\n\
        bob:x:1002:100::\n\
        short:x:1003:100\n\
        12:x:1004:100::/twelve:\n\
        lonely:x:1005\n\
        minus:x:-1:0::/:\n\
        plus:x:+1006:0::/:\n\
        none:x:4294967295:0::/:\n\
        huge:x:4294967296:0::/:\n\
        grouphuge:x:1007:99999999999::/:\n\
        zero\0:x:1008:0::/:\n\
        :x:1009:0::/:\n\
        l\xf6we:x:1010:100::/l\xf6we:\n\
        last:x:1011:100::/last:/bin/sh";

    const GROUP: &[u8] = b"root:x:0:\n\
        wheel:x:10:root,ann\r\n\
        audio:x:29:bob,ann\n\
        ann:x:1000:ann\n\
        wheel:x:11:bob\n\
        users:x:100:an,annn,last\n\
        few:x\n\
        bad:x:-5:ann\n\
        7:x:70:\n\
        tail:x:30:ann";

    #[track_caller]
    fn check(wanted: &[u8], uid: u32, gid: u32, groups: &[u32], home: &[u8]) {
        let expected = Account {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_vec(),
        };
        assert_eq!(resolve(wanted, PASSWD, GROUP), Ok(expected));
    }

    #[test]
    fn users_are_found_with_their_groups() {
        check(b"root", 0, 0, &[0, 10], b"/root");
        check(b"ann", 1000, 1000, &[1000, 10, 29, 30], b"/users/ann");
        // The name of the first entry with the number is used for the groups.
        check(b"1000", 1000, 1000, &[1000, 10, 29, 30], b"/users/ann");
        check(b"twin", 1000, 50, &[50], b"/twin");
        check(b"bob", 1002, 100, &[100, 29, 11], b"/");
        check(b"short", 1003, 100, &[100], b"/");
        check(b"l\xf6we", 1010, 100, &[100], b"/l\xf6we");
        check(b"last", 1011, 100, &[100], b"/last");
    }

    #[test]
    fn a_given_group_is_the_only_one() {
        check(b"ann:audio", 1000, 29, &[29], b"/users/ann");
        check(b"ann:wheel", 1000, 10, &[10], b"/users/ann");
        check(b"ann:4242", 1000, 4242, &[4242], b"/users/ann");
        check(b"1000:0", 1000, 0, &[0], b"/users/ann");
        // As in `chown`, nothing after the colon means the user's own group.
        check(b"bob:", 1002, 100, &[100, 29, 11], b"/");
    }

    #[test]
    fn numbers_need_no_entry() {
        check(b"4242", 4242, 0, &[0], b"/");
        check(b"4242:4343", 4242, 4343, &[4343], b"/");
        check(b"4242:users", 4242, 100, &[100], b"/");
        check(b"0012", 12, 0, &[0], b"/");
        // An entry whose name is a number does not match the number.
        check(b"12", 12, 0, &[0], b"/");
        check(b"root:7", 0, 7, &[7], b"/root");
        let largest = ID_NONE - 1;
        check(largest.to_string().as_bytes(), largest, 0, &[0], b"/");
    }

    #[test]
    fn what_cannot_be_found_is_an_error() {
        let cases: &[(&[u8], AccountError)] = &[
            (b"", AccountError::NoUserGiven),
            (b":", AccountError::NoUserGiven),
            (b":audio", AccountError::NoUserGiven),
            (b"nobody", AccountError::UserUnknown),
            (b"An", AccountError::UserUnknown),
            (b"-1", AccountError::UserUnknown),
            (b"+5", AccountError::UserUnknown),
            (b" ann", AccountError::UserUnknown),
            (b"# a comment", AccountError::UserUnknown),
            (b"+nis", AccountError::UserUnknown),
            (b"lonely", AccountError::UserUnknown),
            (b"minus", AccountError::UserUnknown),
            (b"plus", AccountError::UserUnknown),
            (b"none", AccountError::UserUnknown),
            (b"huge", AccountError::UserUnknown),
            (b"grouphuge", AccountError::UserUnknown),
            (b"zero\0", AccountError::UserUnknown),
            (b"4294967295", AccountError::OutOfRange),
            (b"4294967296", AccountError::OutOfRange),
            (b"99999999999999999999", AccountError::OutOfRange),
            (b"ann:nogroup", AccountError::GroupUnknown),
            (b"ann:few", AccountError::GroupUnknown),
            (b"ann:bad", AccountError::GroupUnknown),
            (b"ann:audio:more", AccountError::GroupUnknown),
            (b"ann:-1", AccountError::GroupUnknown),
            (b"ann:4294967295", AccountError::OutOfRange),
        ];
        for (wanted, expected) in cases {
            let name = String::from_utf8_lossy(wanted);
            assert_eq!(resolve(wanted, PASSWD, GROUP), Err(*expected), "{name}");
        }
    }

    #[test]
    fn without_the_files_only_numbers_are_found() {
        let account = resolve(b"5:6", b"", b"").unwrap();
        assert_eq!((account.uid, account.gid), (5, 6));
        assert_eq!(resolve(b"root", b"", b""), Err(AccountError::UserUnknown));
        assert_eq!(
            resolve(b"5:root", b"", b""),
            Err(AccountError::GroupUnknown)
        );
    }

    #[test]
    fn lines_of_any_length_are_read() {
        let members = vec!["someone"; 100_000].join(",");
        let group = format!("crowd:x:77:{members},ann\n");
        let account = resolve(b"ann", PASSWD, group.as_bytes()).unwrap();
        assert_eq!(account.groups, [1000, 77]);
    }
}
