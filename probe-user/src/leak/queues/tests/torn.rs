//! Nothing that could ever be read makes a parser panic, and nothing is lost in silence.

use proptest::prelude::*;

use super::super::netlink::{self, Error};
use super::super::tcp::Unowned;
use super::super::{link, neighbour, nfqueue, protocols, qdisc};
use super::captured::{KERNELS, connections, dump, parsed, section};

const DUMPS: [&str; 4] = ["qdisc", "link", "neigh", "neightbl"];

/// All parsers of netlink messages.
fn parse_messages(datagram: &[u8]) -> Result<(), Error> {
    netlink::messages(datagram, 1, &mut |_, payload| parse_payload(payload))?;
    Ok(())
}

fn parse_payload(payload: &[u8]) -> Result<(), Error> {
    let results = [
        qdisc::parse(payload).map(drop),
        link::parse(payload).map(drop),
        neighbour::parse_neighbour(payload).map(drop),
        neighbour::parse_table(payload).map(drop),
    ];
    results.into_iter().collect()
}

/// All parsers of text: whether each understood it.
fn parse_text(text: &[u8]) -> [bool; 5] {
    [
        nfqueue::parse(text).is_ok(),
        nfqueue::parse_sockets(text).is_ok(),
        protocols::parse_sockstat(text).is_ok(),
        protocols::parse_softnet(text).is_ok(),
        connections(text, &mut Unowned::default()).is_ok(),
    ]
}

#[test]
fn a_message_that_is_cut_off_is_an_error() {
    let (_, capture) = KERNELS[0];
    let whole = dump(capture, "qdisc");
    let count = |datagram: &[u8]| parsed(datagram, 36, qdisc::parse).map(|found| found.len());
    let all = count(&whole).unwrap();
    let first = u32::from_ne_bytes(whole[..4].try_into().unwrap()) as usize;
    assert_eq!(count(&whole[..first]).unwrap(), 1);
    for end in 1..first {
        assert!(matches!(count(&whole[..end]), Err(Error::Torn)), "{end}");
    }
    // An attribute that is longer than its message.
    let mut longer = whole.clone();
    longer[36..38].copy_from_slice(&u16::MAX.to_ne_bytes());
    assert!(matches!(count(&longer), Err(Error::Torn)));
    // A message of length 0 must not be read for ever.
    longer[..4].fill(0);
    assert!(matches!(count(&longer), Err(Error::Torn)));
    // Answers to another question.
    assert_eq!(
        {
            let mut found = 0;
            netlink::messages(&whole, 2, &mut |_, _| {
                found += 1;
                Ok(())
            })
            .unwrap();
            found
        },
        0
    );
    assert!(all > 2);
}

#[test]
fn refusals_are_the_kernels_words() {
    let mut error = vec![0; 36];
    error[0] = 36;
    error[4] = 2;
    error[8] = 1;
    error[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
    let refused = netlink::messages(&error, 1, &mut |_, _| Ok(())).unwrap_err();
    assert!(
        refused.to_string().contains("Operation not permitted"),
        "{refused}"
    );
    error[16..20].copy_from_slice(&i32::MIN.to_ne_bytes());
    assert!(netlink::messages(&error, 1, &mut |_, _| Ok(())).is_err());
}

#[test]
fn lines_that_are_cut_off_are_errors() {
    let refused = [
        nfqueue::parse(b"    0   9825  2000 1     0     0").is_err(),
        nfqueue::parse(b"0 1 2 3 0 0 0 5 1").is_err(),
        nfqueue::parse(b"0 -1 2 1 0 0 0 5 1").is_err(),
        nfqueue::parse_sockets(b"sk Eth\n0 12 98 0 5").is_err(),
        protocols::parse_sockstat(b"FRAG: inuse 1 memory").is_err(),
        protocols::parse_sockstat(b"FRAG inuse 1").is_err(),
        protocols::parse_softnet(b"0000").is_err(),
        protocols::parse_softnet(b"00 +1 00").is_err(),
        connections(
            b"sl\n 0: 0100007F:1B5A 0:0 04 003F86",
            &mut Unowned::default(),
        )
        .is_err(),
    ];
    assert_eq!(refused, [true; 9]);
    // Kernels before the columns were added.
    let short = protocols::parse_softnet(b"0000000a 00000002 00000000\n").unwrap();
    assert_eq!(
        (short[0].cpu, short[0].packets, short[0].drops),
        (0, None, 2)
    );
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = parse_messages(&bytes);
        let _ = parse_payload(&bytes);
        parse_text(&bytes);
    }

    #[test]
    fn real_messages_with_changed_bytes(
        kernel in 0..KERNELS.len(),
        name in 0..DUMPS.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let mut datagram = dump(KERNELS[kernel].1, DUMPS[name]);
        for (at, byte) in changes {
            let at = at.index(datagram.len());
            datagram[at] = byte;
        }
        let _ = parse_messages(&datagram);
        let _ = parse_messages(&datagram[..end.index(datagram.len())]);
    }

    #[test]
    fn real_text_with_changed_bytes(
        kernel in 0..KERNELS.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        end in any::<prop::sample::Index>(),
    ) {
        for name in ["netfilter/nfnetlink_queue", "netlink", "sockstat", "softnet_stat", "tcp"] {
            let mut text = section(KERNELS[kernel].1, &format!("/proc/net/{name}")).to_vec();
            for (at, byte) in &changes {
                let at = at.index(text.len());
                text[at] = *byte;
            }
            text.truncate(end.index(text.len()));
            parse_text(&text);
        }
    }
}
