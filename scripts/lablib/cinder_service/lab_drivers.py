"""Cinder back ends for a machine without device-mapper.

Above the volume group everything is Cinder's own code (LVMVolumeDriver and its tgt target driver);
below it, logical volumes are sparse files.
"""

import os

from cinder import interface
from cinder.volume.drivers import lvm
from cinder.volume.targets import tgt

_CAPACITY_GB = 1000.0


class FileVolumeGroup:
    """What LVMVolumeDriver needs of `cinder.brick.local_dev.lvm.LVM`, over a directory."""

    def __init__(self, directory):
        self._directory = directory
        self.vg_name = directory
        self.vg_size = self.vg_free_space = _CAPACITY_GB

    def path(self, name):
        return os.path.join(self._directory, name)

    def get_volumes(self):
        return [{"name": name, "size": "1.00"} for name in os.listdir(self._directory)]

    def get_volume(self, name):
        return {"name": name} if os.path.exists(self.path(name)) else None

    def create_volume(self, name, size_str, lv_type="default", mirror_count=0):
        with open(self.path(name), "xb") as file:
            file.truncate(int(size_str.rstrip("g")) << 30)

    def extend_volume(self, name, size_str):
        os.truncate(self.path(name), int(size_str.rstrip("g")) << 30)

    def delete(self, name):
        os.unlink(self.path(name))

    def lv_has_snapshot(self, name):
        return False

    def update_volume_group_info(self):
        pass

    def activate_lv(self, name, is_snapshot=False, permanent=False):
        pass


@interface.volumedriver
class FileLVMDriver(lvm.LVMVolumeDriver):
    """LVMVolumeDriver over sparse files. The option `volume_group` is the directory, relative to /dev."""

    def check_for_setup_error(self):
        directory = os.path.normpath(os.path.join("/dev", self.configuration.volume_group))
        os.makedirs(directory, exist_ok=True)
        self.vg = FileVolumeGroup(directory)
        self.configuration.lvm_type = "default"

    def local_path(self, volume, vg=None):
        return self.vg.path(volume["name"])


class TgtWithoutChap(tgt.TgtAdm):
    """Cinder has no option to export without CHAP; many storage arrays do."""

    def create_iscsi_target(self, name, tid, lun, path, chap_auth=None, **kwargs):
        return super().create_iscsi_target(name, tid, lun, path, None, **kwargs)

    def create_export(self, context, volume, volume_path):
        return {**super().create_export(context, volume, volume_path), "auth": None}


@interface.volumedriver
class FileLVMWithoutChapDriver(FileLVMDriver):
    """The same, exported without CHAP."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.target_driver = TgtWithoutChap(configuration=self.configuration, executor=self._execute)


@interface.volumedriver
class FibreChannelOnlyDriver(FileLVMDriver):
    """A back end that isn't iSCSI: its connection info must be refused by an iSCSI client."""

    def create_export(self, context, volume, connector, vg=None):
        return {}

    def ensure_export(self, context, volume):
        return {}

    def remove_export(self, context, volume):
        pass

    def validate_connector(self, connector):
        return True

    def initialize_connection(self, volume, connector):
        return {
            "driver_volume_type": "fibre_channel",
            "data": {
                "target_discovered": True,
                "target_lun": 1,
                "target_wwn": ["50014380242b9750", "50014380242b9751"],
                "volume_id": volume["id"],
                "discard": False,
            },
        }

    def terminate_connection(self, volume, connector, **kwargs):
        return {"driver_volume_type": "fibre_channel", "data": {}}
