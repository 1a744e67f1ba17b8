import sys, time
sys.path[:0]=['/work/main']
import numpy as np, torch
from diffusion_utils import *
from diffusion_course.images import CATS, Augmented, mirror, copies
from diffusion_course.long_runs import carry_on
from diffusion_course.optimizers import even_l1_loss, muon
from PIL import Image
torch.set_num_threads(1)
data=get_data(CATS,size=32)
def sheet(x,p,c=16):
    n=len(x)//c*c; x=x[:n].unflatten(0,(n//c,c)).permute(0,3,1,4,2).flatten(0,1).flatten(1,2)
    im=Image.fromarray((x*255).round().byte().numpy()); im.resize((im.width*2,im.height*2),0).save(p)
kind=sys.argv[1]; epochs=int(sys.argv[2])
torch.manual_seed(0)
if kind=='live':
    d=Diffusion.from_pretrained(TOY_MODEL)
    tr=Training(d,get_loader(data,32),loss=even_l1_loss,optimizer=muon,**CPU_RECIPE|dict(epochs=epochs,lr=5e-3))
    loop=tr
else:
    d=Diffusion(DiffusionConfig(**CPU_SHAPE)); torch.nn.init.zeros_(d.unet.out.weight); torch.nn.init.zeros_(d.unet.out.bias)
    tr=Training(d,get_loader(Augmented(data,mirror),32),loss=even_l1_loss,optimizer=muon,epochs=epochs,lr=5e-3,ema_decay=0.999,warmup_steps=100,cosine_decay=True)
    loop=carry_on(tr,'/tmp/emo/ship',every=1000)
t=time.process_time(); print(len(tr), tr.accelerator.mixed_precision, flush=True)
for s in loop:
    if s%500==0 or kind=='live' and s in (20,100):
        print(s,time.process_time()-t,np.mean([float(x) for x in tr.history['loss'][-500:]]),flush=True)
        if s%2000==0 or kind=='live': sheet(generate(tr.average.module,n=64,seed=1),f'/tmp/emo/t/{kind}_{s}.png')
print('seconds',time.process_time()-t,len(tr), tr.history.get('seconds'), 'loss at the end', np.mean([float(x) for x in tr.history['loss'][-62:]]))
d.save_pretrained(f'/tmp/emo/t/{kind}')
g=generate(d,n=96,seed=1)
sheet(g,f'/tmp/emo/t/{kind}_end.png')
print('copies',copies(g,data)[0].float().mean())
