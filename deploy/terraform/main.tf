# NetworkPolicies through the Kubernetes provider. objects.json holds what it creates; a test compares those objects
# with the manifests in ../examples/seeds by what they allow.

terraform {
  required_version = ">= 1.5"
  required_providers {
    kubernetes = {
      source  = "hashicorp/kubernetes"
      version = ">= 2.20"
    }
  }
}

provider "kubernetes" {
  config_path    = var.kubeconfig
  config_context = var.context
}

variable "kubeconfig" {
  description = "Path of the kubeconfig"
  type        = string
  default     = "~/.kube/config"
}

variable "context" {
  description = "Context of the kubeconfig; its current one by default"
  type        = string
  default     = null
}

variable "namespace" {
  description = "Namespace of the three tiers; it must exist"
  type        = string
  default     = "production"
}

# Nothing comes in unless another policy allows it. An empty pod_selector block selects every pod.
resource "kubernetes_network_policy_v1" "default_deny_ingress" {
  metadata {
    name      = "default-deny-ingress"
    namespace = var.namespace
  }
  spec {
    pod_selector {}
    policy_types = ["Ingress"]
  }
}

resource "kubernetes_network_policy_v1" "backend" {
  metadata {
    name      = "backend-policy"
    namespace = var.namespace
  }
  spec {
    pod_selector {
      match_labels = {
        app = "backend"
      }
    }
    policy_types = ["Ingress", "Egress"]
    ingress {
      from {
        pod_selector {
          match_labels = {
            app = "frontend"
          }
        }
      }
      ports {
        protocol = "TCP"
        port     = "8080"
      }
    }
    egress {
      to {
        pod_selector {
          match_labels = {
            app = "database"
          }
        }
      }
      ports {
        protocol = "TCP"
        port     = "5432"
      }
    }
  }
}
