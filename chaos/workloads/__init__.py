"""What clients do while the cluster breaks, a module for each workload. `known` lists them by name.

workload    what a workload is: clients, and what they do once all is healed
known       all of them, chosen by name
recording   clients whose every operation is noted in the history
register    compare-and-set on few hot images, at the registry
registry_images   images at the registry, some creates sent twice with one key
image_set   images made, read and listed in every zone
ids         image numbers straight from the registry
life        images created, renamed, deleted at home and looked at in another zone
conflict    images that two zones write at the same time
sharing     images shared between tenants
feed        consumers of the changefeed
data        image data with checksums, in two zones
backup      the backup job of a cloud
"""
