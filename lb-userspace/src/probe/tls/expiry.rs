//! When a certificate expires.

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, Reader, SliceReader, Tag};
use jiff::Timestamp;

/// The `notAfter` of an X.509 certificate (RFC 5280, 4.1.2.5); `None` if the bytes are none.
pub fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let seconds = read(certificate).ok()?.as_secs();
    // "99991231235959Z" says that there is no end. Timestamps end a day before.
    let last = Timestamp::MAX.as_second();
    let seconds = i64::try_from(seconds).unwrap_or(last).min(last);
    Timestamp::from_second(seconds).ok()
}

fn read(certificate: &[u8]) -> der::Result<std::time::Duration> {
    let mut certificate = SliceReader::new(certificate)?;
    let mut certificate = inside(&mut certificate)?;
    let mut tbs = inside(&mut certificate)?;
    // The version is a field of its own kind that old ones lack.
    if matches!(Tag::peek(&tbs)?, Tag::ContextSpecific { .. }) {
        tbs.tlv_bytes()?;
    }
    for _serial_signature_issuer in 0..3 {
        tbs.tlv_bytes()?;
    }
    let mut validity = inside(&mut tbs)?;
    let _not_before = validity.tlv_bytes()?;
    match Tag::peek(&validity)? {
        Tag::UtcTime => Ok(UtcTime::decode(&mut validity)?.to_unix_duration()),
        _ => Ok(GeneralizedTime::decode(&mut validity)?.to_unix_duration()),
    }
}

/// What is in the SEQUENCE that comes next.
fn inside<'a>(reader: &mut SliceReader<'a>) -> der::Result<SliceReader<'a>> {
    let sequence = AnyRef::decode(reader)?;
    der::Tagged::tag(&sequence).assert_eq(Tag::Sequence)?;
    SliceReader::new(sequence.value())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["hc.test".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 3, 4);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn both_forms_of_a_time_are_read() {
        // UTCTime to 2049, GeneralizedTime from then on.
        for (year, wanted) in [
            (2031, "2031-03-04T00:00:00Z"),
            (2049, "2049-03-04T00:00:00Z"),
            (2050, "2050-03-04T00:00:00Z"),
            (9999, "9999-03-04T00:00:00Z"),
        ] {
            let found = not_after(&certificate(year));
            assert_eq!(found, Some(wanted.parse().unwrap()), "{year}");
        }
    }

    #[test]
    fn one_without_an_end_is_good_for_long() {
        let mut bytes = certificate(9999);
        let place = bytes
            .windows(15)
            .position(|time| time == b"99990304000000Z");
        let place = place.unwrap();
        bytes[place..place + 15].copy_from_slice(b"99991231235959Z");
        assert_eq!(
            not_after(&bytes).map(Timestamp::as_second),
            Some(Timestamp::MAX.as_second())
        );
    }

    #[test]
    fn a_cut_off_one_has_none_or_the_same() {
        let whole = certificate(2031);
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(not_after(b"-----BEGIN CERTIFICATE-----"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(place in 0usize..400, byte in any::<u8>()) {
            let mut bytes = certificate(2031);
            let place = place % bytes.len();
            bytes[place] = byte;
            let _ = not_after(&bytes);
        }
    }
}
