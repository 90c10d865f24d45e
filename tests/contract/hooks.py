"""What Schemathesis has to be told before it reads the document. It runs in an environment of its own."""

import schemathesis

for version in ("2.0", "2.1"):
    schemathesis.serializer.alias(f"application/openstack-images-v{version}-json-patch", "application/json")
