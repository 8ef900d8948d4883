{{- define "attachd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "attachd.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "attachd.labels" -}}
{{ include "attachd.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "attachd.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* The user that the API server sees, in the admission policies. */ -}}
{{- define "attachd.username" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "attachd.fullname" . }}
{{- end -}}

{{- /* Where /livez and /readyz are asked for: kubelet takes the Pod's address unless it is told. */ -}}
{{- define "attachd.probe" -}}
{{- $address := .root.Values.http.bindAddress -}}
httpGet:
  path: {{ .path }}
  port: http
  {{- if has $address (list "127.0.0.1" "::1") }}
  host: {{ $address | quote }}
  {{- end }}
{{- end -}}

{{- /* Which cloud, and as whom: variables of a container, given the root and the name of the Secret. */ -}}
{{- define "attachd.cloud" -}}
{{- if .secret -}}
# A file, and no variables: those can be read in /proc.
- name: OS_CLIENT_CONFIG_FILE
  value: /etc/attachd/cloud/clouds.yaml
{{- with .root.Values.cinder.cloud }}
- name: OS_CLOUD
  value: {{ . | quote }}
{{- end }}
{{- else -}}
- name: OS_AUTH_TYPE
  value: none
- name: OS_ENDPOINT
  value: {{ .root.Values.cinder.endpoint | quote }}
- name: OS_PROJECT_ID
  value: {{ .root.Values.cinder.project | quote }}
{{- with .root.Values.cinder.user }}
- name: OS_USERNAME
  value: {{ . | quote }}
{{- end }}
{{- end }}
- name: ATTACHD_CINDER_TIMEOUT
  value: {{ .root.Values.cinder.timeoutSeconds | quote }}
{{- if .root.Values.cinder.caConfigMap.name }}
- name: SSL_CERT_FILE
  value: /etc/attachd/ca/ca.crt
{{- end }}
{{- end -}}
