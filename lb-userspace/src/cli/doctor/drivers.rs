//! Drivers that run XDP programs themselves, rather than leaving it to the kernel's generic path.

/// Drivers with native XDP, by the name under `/sys/class/net/IF/device/driver`. Not all there are,
/// and an old kernel's may lack it: what is not here is tried too, and only the kernel's answer to
/// an attachment is the truth.
const NATIVE: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "ena",
    "fsl_dpa",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "fsl_enetc_vf",
    "funeth",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "lan966x-switch",
    "mana",
    "mlx4_core",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "netsec",
    "nfp",
    "nicvf",
    "qede",
    "rvu_nicpf",
    "rvu_nicvf",
    "sfc",
    "tsnep",
    "vif",
    "virtio_net",
    "vmxnet3",
];

/// Devices without hardware, by their rtnetlink kind, that have native XDP.
const NATIVE_KINDS: &[&str] = &["veth", "tun", "bond"];

/// Whether XDP runs natively there: yes, or not that we know.
pub fn is_native(driver: Option<&str>, kind: Option<&str>) -> bool {
    driver.is_some_and(|driver| NATIVE.contains(&driver))
        || kind.is_some_and(|kind| NATIVE_KINDS.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_and_kinds_are_known_by_name() {
        assert!(is_native(Some("mlx5_core"), None));
        assert!(is_native(None, Some("veth")));
        assert!(!is_native(Some("e1000"), None));
        assert!(!is_native(None, Some("dummy")));
        assert!(!is_native(None, None));
    }
}
