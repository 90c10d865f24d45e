"""Zone gateway: the Images API of one zone, which keeps working while the registry is away.

A request's way through the modules:
  images_v2 (HTTP) -> images, image_data (use cases) -> write_queue + id_pool + catalogue, in one transaction of store
  drainer -> uplink -> registry           pending writes, in order, exactly once
  registry -> uplink -> feed_consumer -> catalogue
  data_stores, data_cache, interzone      image bytes: own, other zones', for other zones
  imports, staging, placement             image bytes on their way into stores, here and in other zones
main wires them; config holds every bound; errors holds every refusal.
"""
