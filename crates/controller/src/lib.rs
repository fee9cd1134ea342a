//! The controller: keeps the certificate authority, publishes the trust bundle and signs nodes' certificate requests.
