# Builds the image that "docker buildx create --driver docker-container
# --driver-opt image=..." runs. See hack/image/Dockerfile.
#
#   docker buildx bake                  from source (needs golang and debian images)
#   docker buildx bake image-local      from ./bin, which "hack/image/binaries" fills
#   TAG=host/name:tag docker buildx bake --push
#   docker buildx bake --set '*.output=type=docker,dest=image.tar'

variable "TAG" {
  default = "lazykit/buildkitd:latest"
}

variable "GO_IMAGE" {
  default = "golang:1.26.8-bookworm"
}

variable "BASE_IMAGE" {
  default = "debian:bookworm-slim"
}

# Directory with buildkitd, buildctl and lazyctl, for image-local.
variable "BINARIES" {
  default = "./bin"
}

group "default" {
  targets = ["image"]
}

target "_common" {
  context    = "."
  dockerfile = "hack/image/Dockerfile"
  args = {
    BASE_IMAGE = BASE_IMAGE
  }
  tags = [TAG]
}

target "image" {
  inherits = ["_common"]
  target   = "image"
  args = {
    GO_IMAGE = GO_IMAGE
  }
}

target "image-local" {
  inherits = ["_common"]
  target   = "image-local"
  contexts = {
    binaries = BINARIES
  }
}
