"""The lab: guest nodes, an iSCSI target and a real Cinder, all on loopback. Standard library only."""
