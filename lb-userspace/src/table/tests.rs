use super::*;

fn members(weights: &[u32]) -> Vec<Member> {
    (1..)
        .zip(weights)
        .map(|(index, &weight)| Member {
            index,
            identity: format!("10.{}.{}.1:80", index / 256, index % 256),
            weight,
        })
        .collect()
}

#[test]
fn smoke() {
    let members = members(&[1; 5]);
    let base = Base::new(&members, 4093);
    assert_eq!(base.owners().len(), 4093);
}
